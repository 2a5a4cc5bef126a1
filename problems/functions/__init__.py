"""Scores by functions of the user's own, which receive a merge as a model that can be called."""
