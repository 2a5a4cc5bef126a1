"""Searches compared under one protocol: `python -m benchmarks.compare`."""
