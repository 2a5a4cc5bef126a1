"""Tasks: examples, readers and metrics."""
