"""Searches that survive their process, for any EvoX workflow."""

# EvoX first: it registers the plugin, for which it imports this package.
import evox  # noqa: F401  isort: skip
