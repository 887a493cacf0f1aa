"""What a graph becomes: region programs, and how they run on tensors."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsec.autotune.kernel_case import with_weights_of_smallest
from sparsec.backends.base import Backend, Executor
from sparsec.backends.lowering import Lowered
from sparsec.doors.from_torch.aliasing import Aliasing
from sparsec.errors import InvalidInput
from sparsec.ir.pipeline import Story
from sparsec.lower.region_op import RegionOp
from sparsec.lower.regions import Region
from sparsec.run.explanation import Explanation
from sparsec.run.inputs import check_indices, sizes_of
from sparsec.run.program import Program

#: Tensors that hold their elements, as far as no mode is on.
_PLAIN = {Tensor, nn.Parameter}


@dataclass(eq=False)
class RegionProgram:
    """One region, executable: its program bound to weights and kernels. ``region`` and ``lowered`` are what it was made from.

    Their constants may be the model's own: they are for compiling, and gone after ``CompiledGraph.release_weights``.

    ``times``: what was measured of each task's candidates (see ``tune.Chosen``).
    """

    region: Region
    lowered: Lowered
    program: Program
    library: Path
    runner: Executor
    backend: Backend
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on contiguous tensors with a common leading batch axis.

        InvalidInput for sizes or indices out of range and for tensors without memory.
        """
        batch, program = inputs[0].shape[0], self.program
        addresses = [x.data_ptr() for x in inputs]
        if batch and 0 in addresses:
            name = program.inputs[addresses.index(0)].name
            raise InvalidInput(f"Input {name!r} has no memory.", hint="Its storage was released or never made.")
        sizes = sizes_of(program, inputs) if program.sizes else {}
        arrays = [x.numpy() for x in inputs] if self.looks_inside else []
        if arrays:
            check_indices(program, arrays)
        outputs = self.allocate(inputs, sizes)
        if batch and program.padding is not None:
            self.runner.run_arrays(arrays, [y.numpy() for y in outputs], sizes)
        elif batch:
            self.runner.run_addresses(addresses, [y.data_ptr() for y in outputs], batch, sizes)
        return outputs

    def allocate(self, inputs: Sequence[Tensor], sizes: Mapping[str, int] | None = None) -> list[Tensor]:
        """New outputs for inputs of these shapes; ``sizes``: what they say, where that is known."""
        sizes = sizes if sizes is not None else sizes_of(self.program, inputs) if self.program.sizes else {}
        shapes = [((inputs[0].shape[0], *port.shape_for(sizes)), getattr(torch, port.dtype)) for port in self.program.outputs]
        return [torch.empty(shape, dtype=dtype, device="cpu") for shape, dtype in shapes]

    @cached_property
    def looks_inside(self) -> bool:
        """Whether values of inputs are read before the program runs: indices to check, a padding mask."""
        return self.program.padding is not None or any(port.limit is not None for port in self.program.inputs)


@dataclass(eq=False)
class CompiledGraph:
    """What a captured graph became. Called with a flat list of contiguous tensors, returns a flat list.

    ``any_batch``: batches of other sizes run. ``fully_compiled``: one region, no torch operator. ``nothing_sparse``: none was worth it.
    ``reasons``: fallbacks that the user should hear of. Of one region that is everything, ``picks`` are the positions of its inputs among
    the graph's, ``returns`` the positions of the graph's outputs among its. ``dense`` is the graph to run where no region was worth it.
    ``rest_bytes``: constants that what is not in regions holds.
    ``aliasing`` makes the model's results of the graph's, where they share memory. ``one_batch``, ``served``: see ``Captured``.
    ``shapes``: of the outputs, with their dtypes, for the batch that it was compiled for.
    """

    programs: list[RegionProgram]
    story: Story
    explanation: Explanation
    fully_compiled: bool
    nothing_sparse: bool
    reasons: list[str] = field(default_factory=list)
    run_rest: Any = None
    picks: tuple[int, ...] = ()
    returns: tuple[int, ...] = ()
    dense: Any = None
    rest_bytes: int = 0
    aliasing: Aliasing | None = None
    one_batch: str = ""
    served: tuple[int, int | None] = (0, None)
    shapes: Sequence[tuple[tuple[int, ...], torch.dtype]] = ()

    @property
    def any_batch(self) -> bool:
        """Whether the batch size is free: the executor loops over images, and results that are views can be made of any number."""
        return self.fully_compiled and self.served[0] != self.served[1] and (self.aliasing is None or self.aliasing.follows_batch)

    @property
    def fixed_by(self) -> str:
        """Why a program without free sizes refuses other batches; empty where it serves any."""
        if self.one_batch or self.any_batch:
            return self.one_batch
        reason = "results are views that do not follow it" if self.fully_compiled else "parts of the model run in torch"
        return f"{reason} (dynamic_shapes={{0: torch.export.Dim.DYNAMIC}} for each input frees it; of a file, where it is exported)"

    def release_weights(self) -> None:
        """Let go of the model's weights. What exporting kernels needs of them is copied: those of one layer for each kernel."""
        self.dense = None
        for program in self.programs:
            program.lowered = with_weights_of_smallest(program.lowered)
            program.region.release_constants()

    def forget_origins(self) -> None:
        """Keep what runs only: graphs and tasks hold on to weights, once more for every size that a graph is compiled for."""
        for program in self.programs:
            del program.region, program.lowered
        if self.programs:
            self.dense = None

    @property
    def held(self) -> dict[int, int]:
        """Bytes of each array of constants that the graph holds, by an identity that graphs share where they share the array."""
        pieces = {id(piece): piece.nbytes for each in self.programs for piece in each.program.weights.pieces}
        return pieces | {id(self): self.rest_bytes}

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the graph."""
        if torch._C._len_torch_dispatch_stack() or not _PLAIN.issuperset(map(type, inputs)):
            return self.operator(inputs)
        return self._run(inputs)

    @cached_property
    def operator(self) -> RegionOp:
        """The graph as one operator, for what has no memory to run on, or is watched: stand-ins, traces, wrapped tensors, counts."""
        mine = weakref.ref(self)
        return RegionOp(lambda inputs: mine()._run(inputs), lambda inputs: mine()._allocate(inputs))  # type: ignore[union-attr]

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if not self.fully_compiled:
            return list(self.run_rest(inputs))
        return self._returned(self.programs[0]([inputs[i] for i in self.picks]))

    def _allocate(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs as `_run` gives them, without values."""
        if not self.fully_compiled:
            return [torch.empty(shape, dtype=dtype, device="cpu") for shape, dtype in self.shapes]
        return self._returned(self.programs[0].allocate([inputs[i] for i in self.picks]))

    def _returned(self, results: Sequence[Tensor]) -> list[Tensor]:
        # What passes found to be equal is two values to a caller, who may write to one of them.
        return [results[i] if i not in self.returns[:n] else results[i].clone() for n, i in enumerate(self.returns)]
