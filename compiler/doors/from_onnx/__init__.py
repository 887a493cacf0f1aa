"""The ONNX door: a file or message becomes one CAPTURED graph."""
