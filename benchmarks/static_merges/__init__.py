"""Merges without a search: `python -m benchmarks.static_merges`."""
