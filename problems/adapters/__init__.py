"""LoRA adapters: read, merged, exported."""
