"""LoRA adapters: read, checked, merged, regressed and exported."""
