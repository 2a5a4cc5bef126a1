"""Merges of experts of image models, scored on classification with a fixed head per task."""
