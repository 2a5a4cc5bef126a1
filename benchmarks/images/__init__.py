"""Merges of LoRA experts of DINOv2 on tasks of Fashion-MNIST."""
