"""How fast evaluation and steps are, and what a long run needs."""
