"""ONNX, TorchScript and torch.export files, behind a gate."""
