"""The rivals by name; importable without torch."""

DENSE_FP32 = ("eager", "inductor", "inductor-freezing", "onnxruntime", "openvino")
LOW_PRECISION = ("inductor-bf16", "openvino-bf16")
OURS = ("sparsec", "sparsec-artifact")
RIVALS = (*OURS, *DENSE_FP32, *LOW_PRECISION)
