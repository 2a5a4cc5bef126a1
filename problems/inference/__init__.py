"""The language model: its base, and batches, caches, forward passes and decoding."""
