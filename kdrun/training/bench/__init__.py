"""The training loop beside a plain PyTorch loop."""
