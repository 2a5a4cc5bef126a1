"""A small T5, trained from scratch on three procedural text tasks, and merges of its experts."""
