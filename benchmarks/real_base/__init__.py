"""Two merge runs on Qwen2.5-Coder-0.5B-Instruct: `python -m benchmarks.real_base`."""
