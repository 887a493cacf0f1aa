"""ONNX's own test data for backends: every model of tensors gives what the specification says, or is refused with a reason."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

onnx = pytest.importorskip("onnx")
loader = pytest.importorskip("onnx.backend.test.loader")

import sparsec  # noqa: E402

#: TensorProto types that are tested: float32, int32, int64, bool.
TYPES = (1, 6, 7, 9)
#: The share of models that run. A new version of onnx has more of them; README says how many of which version did.
RUN = 0.7


def stored(each: Any) -> Any:
    """A case that lies in a folder, read as those in memory are."""
    folder = Path(each.model_dir)
    model = onnx.load(folder / "model.onnx")
    names = [value.name for value in model.graph.initializer]
    inputs = [value for value in model.graph.input if value.name not in names]
    read = [
        [_tensors(data, "input", len(inputs)), _tensors(data, "output", len(model.graph.output))] for data in folder.glob("test_data_set_*")
    ]
    return replace(each, model=model, data_sets=read)


def _tensors(folder: Path, name: str, count: int) -> list[np.ndarray]:
    protos = [onnx.TensorProto.FromString((folder / f"{name}_{number}.pb").read_bytes()) for number in range(count)]
    return [onnx.numpy_helper.to_array(proto) for proto in protos]


def cases(kind: str) -> Iterator[Any]:
    """Models with inputs, all of which are tensors of these types."""
    for each in loader.load_model_tests(kind=kind):
        each = stored(each) if kind != "node" else each
        values = [] if each.model is None else [*each.model.graph.input, *each.model.graph.output]
        tensors = all(v.type.WhichOneof("value") == "tensor_type" and v.type.tensor_type.elem_type in TYPES for v in values)
        if values and each.model.graph.input and tensors:
            yield each


def verdict(each: Any) -> str:
    """equal, refused, or what is wrong."""
    for given, wanted in each.data_sets:
        inputs = tuple(np.asarray(value) for value in given)
        try:
            found = [np.asarray(leaf) for leaf in tree_leaves(sparsec.compile(each.model, inputs, threads=1)(*inputs))]
        except sparsec.SparsecError:
            return "refused"
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"
        if [(a.shape, a.dtype) for a in found] != [(np.shape(b), np.asarray(b).dtype) for b in wanted]:
            return f"results {[(a.shape, a.dtype) for a in found]}"
        if not all(np.allclose(a, b, rtol=max(each.rtol, 1e-3), atol=1e-5, equal_nan=True) for a, b in zip(found, wanted, strict=True)):
            return "other values"
    return "equal"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_model_of_the_backend_tests(without_inductor: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("SPARSEC_STRICT", "1")
    torch.set_num_threads(1)
    for kind in ("node", "simple", "pytorch-converted", "pytorch-operator"):
        found = {each.name: verdict(each) for each in cases(kind)}
        count = Counter(found.values())
        with capsys.disabled():
            print(f"\nONNX backend tests, {kind}: {count['equal']} equal, {count['refused']} refused of {len(found)}")
        wrong = {name: said for name, said in found.items() if said not in ("equal", "refused")}
        assert not wrong, wrong
        assert count["equal"] >= RUN * len(found) or kind == "simple"  # These are of sequences and texts.
