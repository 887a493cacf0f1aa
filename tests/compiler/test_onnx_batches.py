"""ONNX files whose batch is free: what a node does with one number of samples is not taken for what it does with another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.doors.from_onnx.batches import NodeCall, dependence
from sparsec.errors import SparsecError
from tests.compiler.test_conditions import Asks
from tests.fuzz.prelude import seeded

BATCHES = (1, 2, 3, 4, 5, 9)


#: Functions of a layer and x [N,6,16]; whether one program serves all N.
FUNCTIONS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], bool]] = {
    "layer": (lambda layer, x: layer(x), True),
    "first": (lambda layer, x: layer(x).narrow(0, 0, 1) + layer(x), False),
    "first four": (lambda layer, x: layer(x[:4]), False),
    "last four": (lambda layer, x: layer(x)[-4:], False),
    "of its number": (lambda layer, x: layer(x) / x.shape[0], False),
    "numbered": (lambda layer, x: layer(x) + torch.arange(x.shape[0])[:, None, None], False),
    "one for all": (lambda layer, x: layer(x) + torch.full((x.shape[0], 1, 16), 2.0), True),
    "mean of samples": (lambda layer, x: layer(x) - x.mean(0, keepdim=True), False),
    "merged": (lambda layer, x: layer(x.reshape(1, -1, 16)).softmax(1).reshape(-1, 6, 16), False),
    "written out": (lambda layer, x: layer(x.reshape(2, 1, -1, 16)).flatten(1), False),
    "rows": (lambda layer, x: layer(x.reshape(-1, 16)).reshape(x.shape[0], -1, 16), True),
    "tokens": (lambda layer, x: layer(x[:, :4]), True),
    "class token": (lambda layer, x: layer(torch.cat([torch.ones(1, 1, 16).expand(x.shape[0], -1, -1), x], 1)), True),
}
FAST = ("layer", "first", "of its number")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in FUNCTIONS])
def test_every_batch_is_as_in_onnx_runtime(tmp_path: Path, kernels: Path, name: str, dynamo: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript", reason="the exporter of torch needs onnxscript")
    function, free = FUNCTIONS[name]
    model, path = seeded(Asks(function), "90%", 0), tmp_path / "model.onnx"
    axes: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim.AUTO},)} if dynamo else {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
    torch.onnx.export(model, (torch.randn(2, 6, 16),), path, input_names=["x"], output_names=["y"], dynamo=dynamo, verbose=False, **axes)
    session = onnxruntime.InferenceSession(path)
    fast = sparsec.compile(path, threads=1, cache_dir=kernels)
    found = []
    for batch in BATCHES:
        x = torch.randn(batch, 6, 16)
        try:
            (wanted,) = session.run(None, {"x": x.numpy()})
            found.append(fast(x))
        except SparsecError:
            assert not free
            continue
        except Exception as error:
            assert "onnxruntime" in type(error).__module__, error
            continue
        torch.testing.assert_close(found[-1], torch.from_numpy(wanted), rtol=1e-4, atol=1e-5)
    assert found
    assert (fast._compiled.one_batch == "") or not free


def call(kind: str, given: tuple[int, ...], made: tuple[int, ...], *known: Any) -> NodeCall:
    return NodeCall(kind, kind, (None, *known), (given, *(tuple(x.shape) for x in known)), (made,))


@pytest.mark.parametrize(
    ("constants", "reason"),
    [
        ((torch.ones(2, 4), torch.ones(3, 4)), ""),
        ((torch.ones(1, 4, 4), torch.ones(1, 6, 4)), ""),
        ((torch.arange(4.0)[:, None], torch.arange(6.0)[:, None]), "a constant that depends on it"),
        ((torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])), ""),
        ((torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 3.0])), "a constant that depends on it"),
        ((torch.tensor(2.0), torch.tensor(3.0)), "a constant that depends on it"),
        ((torch.tensor(2.0), torch.tensor(2.0)), ""),
        ((torch.zeros(2, 0), torch.zeros(3, 0)), ""),
    ],
)
def test_constants_of_two_batches(constants: tuple[Tensor, Tensor], reason: str) -> None:
    here, there = call("Add", (2, 4), (2, 4), constants[0]), call("Add", (3, 4), (3, 4), constants[1])
    found = dependence([here], [there], 2, 3)
    assert reason in found and bool(reason) == bool(found)


def test_other_nodes() -> None:
    here = [call("Add", (2, 4), (2, 4))]
    assert dependence(here, [], 2, 3) == dependence(here, [call("Mul", (3, 4), (3, 4))], 2, 3) == "other nodes run"
    assert "makes something else" in dependence(here, [call("Add", (3, 4), (3, 4, 1))], 2, 3)
