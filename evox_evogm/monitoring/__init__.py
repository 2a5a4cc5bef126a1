"""Watching a search: EvoX's monitor for merges, displays, and trackers such as tensorboard."""

# EvoX first: it registers the plugin, for which it imports this package.
import evox  # noqa: F401  isort: skip
