"""Whatever a model comes as, captured: modules, exported programs, `torch.compile`, ONNX files, factories."""
