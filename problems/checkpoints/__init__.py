"""Experts that are whole models: read, compare with the base, merge, and write."""
