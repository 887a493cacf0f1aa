"""CompiledModel: what ``sparsec.compile`` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsec.doors.arrays import tensor_of
from sparsec.doors.captured import Captured
from sparsec.errors import ArtifactError, InvalidInput
from sparsec.graphs_by_size import GraphsBySize
from sparsec.ir.symbols import shape_text
from sparsec.run import artifact
from sparsec.run.ending import waited_for
from sparsec.run.explanation import Explanation
from sparsec.run.inputs import batches_text, example_inputs
from sparsec.run.runtime import StepTime
from sparsec.settings import Settings

if TYPE_CHECKING:
    from sparsec.compiled_graph import CompiledGraph


_REPEATS = 10


class CompiledModel:
    """A compiled model: call it like the module it was made from, with tensors or numpy arrays.

    Weights are those at the time of compiling; compile again after they change.
    """

    def __init__(
        self,
        captured: Captured,
        compiled: CompiledGraph,
        settings: Settings,
        build: Callable[[Captured], CompiledGraph] | None = None,
        variants: Sequence[CompiledGraph] = (),
    ) -> None:
        """``build`` compiles the same program for other sizes, where it leaves some free.

        ``variants``: what to save, for a processor each, ``compiled`` among them; that alone where there are none.
        """
        self._captured, self._compiled, self._settings, self._variants = captured, compiled, settings, variants or (compiled,)
        self._by_size = GraphsBySize(captured, compiled, build) if captured.symbols and build else None
        self._explanations: dict[CompiledGraph, Explanation] = {}

    @waited_for
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result; numpy arrays in give numpy arrays out.

        Raises:
            InvalidInput: other structure, shapes (but for the batch axis), dtypes or devices than compiled for; other strides, where the
                model's results depend on them; an input that requires a gradient.
        """
        arrays = any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves((args, kwargs)))
        if arrays:
            args, kwargs = pytree.tree_map_only(np.ndarray, tensor_of, (args, kwargs))
        given = self._captured.flatten(args, kwargs)
        if torch.is_grad_enabled() and any(x.requires_grad for x in given):
            why = "A compiled model computes no gradients: the result would be cut off from its inputs."
            hint = "Call it under torch.no_grad() or with x.detach(); torch.compile(model, backend='sparse') runs such calls dense."
            raise InvalidInput("An input requires a gradient.", why=why, hint=hint)
        graph, inputs = self._prepared(given)
        with torch.no_grad():
            results = graph(inputs)
            result = self._captured.nested(results if graph.aliasing is None else graph.aliasing.restore(results, given))
        return pytree.tree_map_only(Tensor, Tensor.numpy, result) if arrays else result

    def _prepared(self, given: Sequence[Tensor]) -> tuple[CompiledGraph, list[Tensor]]:
        """The graph that serves a call and its inputs, checked."""
        inputs = [self._ready(x, i) for i, x in enumerate(given)]
        if self._by_size is not None:
            return self._by_size(self._captured.sizes_of(inputs)), inputs
        self._check_shapes(inputs)
        return self._compiled, inputs

    def __deepcopy__(self, memo: Any) -> CompiledModel:
        """The model itself: nothing about it changes."""
        return self

    def __copy__(self) -> CompiledModel:
        return self

    def __reduce__(self) -> Any:
        """ArtifactError: kernels are code of this machine, which a pickle cannot carry."""
        raise ArtifactError(
            "A compiled model cannot be pickled.",
            why="It holds machine code and memory of this process.",
            hint="Write model.save(path) and pickle sparsec.load(path), which is loaded again from there.",
        )

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name} {shape_text(spec.dims or spec.shape)} {spec.dtype}" for spec in self._captured.inputs)
        return f"CompiledModel({inputs}; {self._compiled.explanation.summary()})"

    def _ready(self, tensor: Tensor, position: int) -> Tensor:
        spec = self._captured.inputs[position]
        if tensor.dtype != spec.dtype or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise self._unfit(tensor, position)
        if not spec.takes_strides(tensor):
            raise InvalidInput(
                f"Input {spec.name!r} lies in memory otherwise than compiled for.",
                why=f"Results of the model depend on strides: compiled for {list(spec.strides or ())}, got {list(tensor.stride())}.",
                hint="Pass input.contiguous(), or compile for inputs like this one.",
            )
        found = tensor.detach().resolve_neg().contiguous()
        return found.clone() if found._is_zerotensor() else found

    def _check_shapes(self, inputs: list[Tensor]) -> None:
        for position, (x, spec) in enumerate(zip(inputs, self._captured.inputs, strict=True)):
            same = x.shape[1:] == spec.shape[1:] and x.dim() == len(spec.shape) if self._compiled.any_batch else x.shape == spec.shape
            if not same or (self._compiled.any_batch and x.dim() and x.shape[0] < self._compiled.served[0]):
                raise self._unfit(x, position)
        sizes = {x.shape[0] for x in inputs if x.dim()}
        if self._compiled.any_batch and len(sizes) > 1:
            raise InvalidInput(f"Inputs have different batch sizes: {sorted(sizes)}.")

    def _unfit(self, tensor: Tensor, position: int) -> InvalidInput:
        spec = self._captured.inputs[position]
        shape = shape_text(spec.dims or spec.shape)
        if self._compiled.any_batch and not spec.dims:
            shape = f"[{', '.join(['batch', *map(str, spec.shape[1:])])}]"
        refused = self._compiled.fixed_by if tensor.dtype == spec.dtype and tensor.shape[1:] == spec.shape[1:] else ""
        return InvalidInput(
            f"Input {spec.name!r} does not fit.",
            why=f"Compiled for {shape} {spec.dtype} on the CPU,"
            f" got {list(tensor.shape)} {tensor.dtype} on {tensor.device}{_layout(tensor)}.",
            hint=refused and f"Other batches are refused: {refused}.",
        )

    def explain(self) -> Explanation:
        """Per layer: the sparsity found, the kernel that won, its bound and time, or why it stayed dense.

        Times are medians of a few runs on random input, measured at the first call; none where parts of the model run in torch, or
        where it is for another machine.
        """
        return self._explained(self._compiled)

    def _explained(self, graph: CompiledGraph) -> Explanation:
        """Of one variant."""
        if graph not in self._explanations:
            found = graph.explanation
            if graph.fully_compiled and not graph.programs[0].backend.machine.not_here:
                program = graph.programs[0]
                times = program.runner.profile(example_inputs(program.program), repeats=_REPEATS)
                layers = (replace(row, time_us=t.seconds * 1e6) for row, t in zip(found.layers, times, strict=True))
                found = replace(found, layers=tuple(layers))
            self._explanations[graph] = found
        found = self._explanations[graph]
        further = self._by_size.notes if self._by_size else self._batch_notes(graph)
        return replace(found, notes=(*found.notes, *further))

    def _batch_notes(self, graph: CompiledGraph) -> tuple[str, ...]:
        """Which batch a program without free sizes serves, where no note of its graph says so."""
        batches = {spec.shape[0] for spec in self._captured.inputs if spec.shape}
        if graph.any_batch or graph.one_batch or len(batches) != 1:
            return ()
        return (f"compiled for {batches_text(*batches, *batches)} only: {graph.fixed_by}",)

    def story(self) -> str:
        """What every pass changed and refused."""
        return str(self._compiled.story)

    def profile(self, *args: Any, repeats: int = 20, **kwargs: Any) -> list[StepTime]:
        """Median seconds of every step over ``repeats`` runs on these inputs. InvalidInput where parts of the model run in torch."""
        graph, inputs = self._prepared(self._captured.flatten(args, kwargs))
        if not graph.fully_compiled:
            raise InvalidInput("Only a model that is one region can be profiled step by step.", hint="See explain() for what torch runs.")
        return graph.programs[0].runner.profile([inputs[i].numpy() for i in graph.picks], repeats)

    def save(self, path: Path | str) -> Path:
        """Write an artifact that runs without torch and without TVM (see ``sparsec.load``).

        An artifact at ``path`` is replaced when the new one is complete. What was compiled for several processors becomes one artifact, of
        which each machine runs the variant that suits it best.

        Returns:
            The absolute path.

        Raises:
            ArtifactError: parts of the model would need torch (they are named), or the place cannot be written.
        """
        variants = [self._variant(graph) for graph in self._variants]
        signature = {"output": _structure(self._captured.nested([torch.empty(0)] * len(variants[0].program.outputs)))}
        return artifact.save_variants(path, variants, signature)

    def _variant(self, graph: CompiledGraph) -> artifact.Variant:
        """What is saved of a graph. ArtifactError where an artifact cannot be all of it."""
        if not graph.fully_compiled:
            rows = "; ".join(f"{node}: {reason}" for node, reason in graph.explanation.uncovered[:8])
            raise ArtifactError("The model cannot be saved: parts of it run in torch.", why=rows, hint="Replace these operators.")
        entry, count = graph.programs[0], len(self._captured.inputs)
        if self._captured.shares_results:
            raise ArtifactError(
                "The model cannot be saved: a result is an input, another result or a view of one.",
                hint="Wrap the model so that it returns clones of those, or each result once.",
            )
        if graph.picks != tuple(range(count)) or graph.returns != tuple(range(len(entry.program.outputs))):
            raise ArtifactError(
                "The model cannot be saved: an input is not used, or two results are always equal.",
                why=f"It uses {len(graph.picks)} of {count} inputs and returns {len(graph.returns)} results.",
                hint="Wrap the model so that each input is used and each result returned once.",
            )
        machine = {name: getattr(entry.backend.machine, name) for name in ("arch", "mcpu", "features")}
        return artifact.Variant(entry.program, entry.library, self._explained(graph), machine)


def _layout(tensor: Tensor) -> str:
    return "" if tensor.layout == torch.strided else f", stored as {tensor.layout}"


def _structure(value: Any) -> Any:
    """The artifact's description of a nested result. ArtifactError for what is neither tensor, None, list, tuple nor dict."""
    if isinstance(value, dict):
        return {"dict": {str(k): _structure(v) for k, v in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_structure(v) for v in value]}
    if value is not None and not isinstance(value, Tensor):
        raise ArtifactError(
            "The model cannot be saved: its result holds more than tensors.",
            why=f"{value!r} is a {type(value).__name__}.",
            hint="Return tensors, None, lists, tuples and dictionaries.",
        )
    return None if value is None else "leaf"
