"""Watching a search: EvoX's monitor for merges, displays, and trackers such as tensorboard."""
