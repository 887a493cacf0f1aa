"""Side-by-side timing of one model under several engines, each in its own process.

>>> from sparsec.bench import compare
>>> result = compare("sparsec.models.zoo:mobilenet_v1_90", ["sparsec", "openvino", "onnxruntime"])
>>> print(result.ratio("sparsec"))
"""

from sparsec.bench.comparison import Comparison, Kernel, RivalResult
from sparsec.bench.interleave import BenchError, compare
from sparsec.bench.names import DENSE_FP32, LOW_PRECISION, OURS, RIVALS

__all__ = [
    "DENSE_FP32",
    "LOW_PRECISION",
    "OURS",
    "RIVALS",
    "BenchError",
    "Comparison",
    "Kernel",
    "RivalResult",
    "compare",
]
