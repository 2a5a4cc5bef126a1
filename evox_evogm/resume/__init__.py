"""Searches that survive their process, for any EvoX workflow."""
