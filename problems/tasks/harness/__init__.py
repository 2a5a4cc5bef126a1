"""Tasks of the LM Evaluation Harness (EleutherAI, MIT), answered for all candidates at once.

The harness is the package lm-eval. It is imported when a task asks for it.
"""
