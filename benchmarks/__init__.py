"""Measurements of this project, run from the root of a checkout: `python -m benchmarks.compare`."""
