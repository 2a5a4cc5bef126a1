"""What shows a search while it runs: a live display on a terminal, lines, or JSON lines."""
