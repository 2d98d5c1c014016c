"""Benchmarks of the training loop against a plain PyTorch loop."""
