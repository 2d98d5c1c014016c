"""Export to ONNX, TorchScript and torch.export files, which must pass a check."""
