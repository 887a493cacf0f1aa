"""``sparsec compare``: ours against eager mode or ONNX Runtime on the user's data, and the node where a difference begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sparsec import driver
from sparsec.doors.captured import Captured
from sparsec.doors.from_onnx.file import read_model
from sparsec.doors.from_onnx.graph import read_network
from sparsec.doors.from_torch.lower import Fixed
from sparsec.doors.open import open_model
from sparsec.errors import InvalidInput
from sparsec.ir.forms import notes
from sparsec.report.agreement import Agreement, compare_results, first_different, read_data
from sparsec.run.artifact import load

Batch = Mapping[str, np.ndarray]
Call = Callable[[Batch], dict[str, np.ndarray]]


def compare(
    model: Any,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None,
    data: Path,
    *,
    artifact: Path | None = None,
    tolerance: float = 1e-4,
    **options: Any,
) -> Agreement:
    """Run the model and what is compiled of it, or an ``artifact``, on every batch of ``data`` (see ``read_data``).

    The reference is eager mode in the model's own precision; of an .onnx file ONNX Runtime. ``options``: fields of ``Settings``.
    InvalidInput for data that do not fit, and whatever compiling raises.
    """
    if isinstance(model, Path) and model.suffix.lower() == ".onnx":
        reference, said, names = _of_onnx(model)
        batches = read_data(data, names)
        # The data are the best examples: inputs that must be known are compiled in.
        example_inputs, kwargs = {name: batches[0][name] for name in names}, None
        captured = open_model(model, example_inputs)
        taken = [name for name, slot in zip(names, captured.in_slots, strict=True) if not isinstance(slot, Fixed)]
    else:
        captured = open_model(model, example_inputs, kwargs)
        reference, said, names = _of_torch(model, captured, example_inputs, kwargs)
        batches, taken = read_data(data, names), names
    ours = _of_artifact(artifact, taken) if artifact else _compiled(model, example_inputs, kwargs, captured, options)
    found: list[str] = []

    def pairs() -> Iterator[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]:
        for batch in batches:
            theirs = reference(batch)
            found[:] = theirs
            mine = ours(batch)
            if len(mine) != len(theirs):
                raise InvalidInput(f"There are {len(mine)} results, the reference has {len(theirs)}.")
            yield [*mine.values()], [*theirs.values()]

    first = next(pairs())
    results, samples = compare_results(found, _after(first, pairs()))
    made = Agreement(said, samples, tolerance, results)
    if made.holds or artifact:
        return made
    return replace(made, begins=_begins(captured, [torch.as_tensor(batches[0][name]) for name in taken], tolerance, options))


def _after(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    """The first pair, that was needed for its names, and the others."""
    next(rest)
    yield first
    yield from rest


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = pytree.tree_flatten_with_path(tree)
    tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor | np.ndarray)]
    return {pytree.keystr(path) or "result": leaf.numpy() if isinstance(leaf, Tensor) else leaf for path, leaf in tensors}


def _of_onnx(path: Path) -> tuple[Call, str, list[str]]:
    from sparsec.bench.reference import onnx_reference

    call, said = onnx_reference(path)
    return call, said, [entry.name for entry in read_network(*read_model(path)).inputs]


def _of_torch(model: Any, captured: Captured, example_inputs: Any, kwargs: Mapping[str, Any] | None) -> tuple[Call, str, list[str]]:
    module: nn.Module = model.module() if isinstance(model, ExportedProgram) else model

    def call(batch: Batch) -> dict[str, np.ndarray]:
        args, named = _filled(example_inputs, kwargs, batch)
        with torch.no_grad():
            return _named(module(*args, **named))

    return call, f"eager mode of torch {torch.__version__}", [spec.name for spec in captured.inputs]


def _filled(example_inputs: Any, kwargs: Mapping[str, Any] | None, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example's arguments with the batch's arrays in the place of its tensors, in order."""
    alone = isinstance(example_inputs, Tensor | np.ndarray)
    given = ((example_inputs,) if alone else tuple(example_inputs or ()), dict(kwargs or {}))
    leaves, spec = pytree.tree_flatten(given)
    arrays = iter(batch.values())
    filled = [torch.as_tensor(next(arrays)) if isinstance(leaf, Tensor | np.ndarray) else leaf for leaf in leaves]
    return pytree.tree_unflatten(filled, spec)


def _of_artifact(path: Path, names: Sequence[str]) -> Call:
    loaded = load(path)
    ports = [port.name for port in loaded.inputs]
    if len(ports) != len(names):
        raise InvalidInput(f"The artifact has {len(ports)} inputs, the model {len(names)}.", where=str(path))
    return lambda batch: loaded.flat(*(batch[name] for name in names))


def _compiled(model: Any, example_inputs: Any, kwargs: Any, captured: Captured, options: Mapping[str, Any]) -> Call:
    fast = driver.compile(model, example_inputs, kwargs, **options)
    if captured.names:
        return lambda batch: _named(fast(**{name: np.asarray(value) for name, value in batch.items()}))

    def call(batch: Batch) -> dict[str, np.ndarray]:
        args, named = _filled(example_inputs, kwargs, batch)
        return _named(fast(*args, **named))

    return call


def _begins(captured: Captured, inputs: Sequence[Tensor], tolerance: float, options: Mapping[str, Any]) -> str:
    """The first node of the captured graph whose value, compiled, is otherwise than computed node by node."""
    part = captured.at(captured.sizes_of(inputs)) if captured.symbols else captured
    graph_module = part.graph_module
    keeping = _Keeping(graph_module)
    with torch.no_grad():
        keeping.run(*inputs)
    nodes = [*keeping.values]

    def error_at(number: int) -> float:
        wanted = keeping.values[nodes[number]]
        fast = driver.compile(_cut(graph_module, nodes[number]), tuple(inputs), **options)
        found = fast(*inputs)
        scale = float(wanted.abs().max()) or 1.0
        return float((found - wanted).abs().nan_to_num(float("inf")).max()) / scale

    number = first_different(len(nodes), error_at, tolerance)
    if number is None:
        return "no single node: each value alone is within the tolerance"
    node = nodes[number]
    return f"{node.name} ({node.target}) {notes(node).get('source', '')}".strip()


class _Keeping(fx.Interpreter):
    """Keeps every float value that an operator makes."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            self.values[n] = value
        return value


def _cut(graph_module: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The graph up to a node, whose value it returns."""
    graph = fx.Graph()
    moved: dict[fx.Node, fx.Node] = {}
    for each in graph_module.graph.nodes:
        if each.op != "output":
            moved[each] = graph.node_copy(each, lambda n: moved[n])
    graph.output(moved[node])
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    return fx.GraphModule(graph_module, graph)
