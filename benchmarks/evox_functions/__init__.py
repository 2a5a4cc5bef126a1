"""EvoGM beside EvoX's own algorithms on test functions: `python -m benchmarks.evox_functions`."""
