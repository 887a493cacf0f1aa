"""What an ONNX file computes by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sparsec.tools.needs import require


def onnx_reference(path: Path) -> tuple[Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]], str]:
    """A function from inputs to results, both by name, and what computes it. MachineError without onnxruntime."""
    require(["onnxruntime"])
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = [entry.name for entry in session.get_outputs()]
    return lambda batch: dict(zip(results, session.run(None, dict(batch)), strict=True)), f"ONNX Runtime {onnxruntime.__version__}"
