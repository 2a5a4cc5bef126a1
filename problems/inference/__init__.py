"""The language model that answers: base, batches, forward passes, caches."""
