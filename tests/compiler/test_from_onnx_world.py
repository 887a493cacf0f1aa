"""ONNX files of the kinds that people have: U-Nets and detectors' necks by torch's exporters, quantised ones by onnxruntime's quantiser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript", reason="the exporter of torch needs onnxscript")

import sparsec  # noqa: E402
from sparsec.doors.from_onnx.importing import OPERATORS  # noqa: E402
from tests.fuzz.prelude import seeded  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_inductor"), pytest.mark.filterwarnings("ignore")]


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, with skips."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.first, self.second, self.third = block(3, 16), block(16, 32), block(32, 32)
        self.up, self.join, self.last, self.mode = nn.ConvTranspose2d(32, 32, 2, 2), block(64, 16), nn.Conv2d(32, 4, 1), mode

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(F.max_pool2d(a, 2))
        c = self.join(torch.cat([self.up(self.third(F.max_pool2d(b, 2))), b], 1))
        scaled = F.interpolate(c, scale_factor=2, mode=self.mode, align_corners=None if self.mode == "nearest" else False)
        return self.last(torch.cat([scaled, a], 1))


class Neck(nn.Module):
    """Features of three sizes made one, boxes and scores of each: what a detector has before its boxes are chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.deep = block(3, 16), block(16, 32), block(32, 32)
        self.lateral, self.smooth, self.head = nn.Conv2d(16, 32, 1), block(32, 32), nn.Conv2d(32, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(F.max_pool2d(x, 2))
        b = self.down(F.max_pool2d(a, 2))
        c = self.deep(F.max_pool2d(b, 2))
        b = b + F.interpolate(c, size=b.shape[-2:], mode="nearest")
        a = self.smooth(self.lateral(a) + F.interpolate(b, size=a.shape[-2:], mode="nearest"))
        found = [self.head(each).flatten(2) for each in (a, b, c)]
        boxes, scores = torch.cat(found, 2).split([4, 5], 1)
        return torch.cat([boxes.sigmoid() * 2 - 0.5, scores.sigmoid()], 1).transpose(1, 2)


def agrees(path: Path, kernels: Path, limit: float = 1e-4) -> Any:
    """Compared with onnxruntime; returns the object."""
    session = onnxruntime.InferenceSession(path)
    fast = sparsec.compile(path, threads=1, cache_dir=kernels)
    for seed in range(2):
        x = torch.randn(session.get_inputs()[0].shape, generator=torch.Generator().manual_seed(seed))
        (wanted,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        found = fast(x)
        assert float((found - torch.from_numpy(wanted)).abs().max()) <= limit * float(np.abs(wanted).max())
    return fast


@pytest.mark.parametrize("dynamo", [False, True], ids=["older exporter", "exporter"])
@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "neck"])
def test_networks_that_resize(tmp_path: Path, kernels: Path, name: str, dynamo: bool) -> None:
    model = seeded(Neck() if name == "neck" else UNet(name), "90%", 0)
    path = tmp_path / "model.onnx"
    options: dict[str, Any] = {} if dynamo else {"opset_version": 17}
    torch.onnx.export(model, (torch.randn(1, 3, 32, 48),), path, input_names=["x"], dynamo=dynamo, verbose=False, **options)
    fast = agrees(path, kernels)
    assert [layer for layer in fast.explain().layers if not layer.stayed_dense]


class Batches:
    """Data that the quantiser calibrates with."""

    def __init__(self, name: str) -> None:
        self.left = [{name: np.random.default_rng(n).standard_normal((1, 3, 32, 32)).astype(np.float32)} for n in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


class Mixed(nn.Module):
    """Sums, products, concatenation, poolings, gates: what the quantiser has operators of its own for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = block(3, 16), block(16, 16), nn.Conv2d(32, 32, 3, 2, 1, groups=2)
        self.gate, self.last = nn.Conv2d(32, 32, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = F.leaky_relu(self.third(torch.cat([self.second(a) + a, F.avg_pool2d(a, 3, 1, 1)], 1)))
        return self.last(F.adaptive_avg_pool2d(b * self.gate(b).sigmoid(), 1).flatten(1))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    model = seeded(Mixed(), "90%", 0)
    torch.onnx.export(model, (torch.randn(1, 3, 32, 32),), path, input_names=["x"], dynamo=False, opset_version=17)
    return path


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_networks_keep_their_zeros(exported: Path, tmp_path: Path, kernels: Path, form: str, per_channel: bool) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    made = tmp_path / "quantised.onnx"
    quantization.quantize_static(
        exported,
        made,
        Batches("x"),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        weight_type=quantization.QuantType.QInt8,
    )
    if form == "QOperator":
        assert {kind for kind in OPERATORS if "." in kind} <= {f"{node.domain}.{node.op_type}" for node in onnx.load(made).graph.node}
    # One step of the last quantisation: what is half way between two goes either way.
    fast = agrees(made, kernels, limit=0.02)
    convolutions = [layer for layer in fast.explain().layers if layer.op == "conv2d" and layer.density is not None]
    assert convolutions and all(layer.density < 0.3 for layer in convolutions)


def test_weights_quantised_alone(exported: Path, tmp_path: Path, kernels: Path) -> None:
    """The dynamic quantiser's form: scales of values are computed when they are there, products are of integers."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    made = tmp_path / "quantised.onnx"
    quantization.quantize_dynamic(exported, made, weight_type=quantization.QuantType.QUInt8)
    assert {"ConvInteger", "MatMulInteger"} & {node.op_type for node in onnx.load(made).graph.node}
    agrees(made, kernels, limit=0.02)
