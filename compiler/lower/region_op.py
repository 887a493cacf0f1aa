"""What is compiled as one operator of torch: for graphs that Inductor takes, and for whatever looks at operators."""

from __future__ import annotations

import itertools
import secrets
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsec.errors import InvalidInput

Run = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class _Running:
    run: Run
    allocate: Run


# Inductor's caches on disk know a region by its handle alone, so a handle must never mean another region elsewhere.
_handles = itertools.count(secrets.randbits(62))
_running: dict[int, _Running] = {}


def _found(handle: int) -> _Running:
    if handle not in _running:
        raise InvalidInput(
            "A graph runs what is not here.",
            why="It was traced through a compiled model, which is gone or in another process.",
            hint="Keep the compiled model as long as the graph, and trace the model that it was made of to save one.",
        )
    return _running[handle]


def _call_region(handle: int, inputs: list[Tensor]) -> list[Tensor]:
    plain = [x if type(x) is Tensor else x.as_subclass(Tensor) for x in inputs]
    return _found(handle).run([x.contiguous() for x in plain])


def _fake_region(handle: int, inputs: list[Tensor]) -> list[Tensor]:
    return _found(handle).allocate(inputs)


_library = torch.library.Library("sparsec", "FRAGMENT")
_library.define("region(int handle, Tensor[] inputs) -> Tensor[]")
_library.impl("region", _call_region, "CompositeExplicitAutograd")
torch.library.register_fake("sparsec::region", _fake_region, lib=_library)
REGION = torch.ops.sparsec.region.default


class RegionOp:
    """A callable as a node that Inductor leaves alone; once this object is gone, graphs with the node cannot run.

    run: takes contiguous tensors and returns a list of new, contiguous tensors, no two of them sharing memory.
    allocate: tensors like those, for inputs that need not have data.
    """

    def __init__(self, run: Run, allocate: Run) -> None:
        self.handle = next(_handles)
        _running[self.handle] = _Running(run, allocate)
        self.close = weakref.finalize(self, _running.pop, self.handle, None)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run through the dispatcher, as a graph does."""
        return REGION(self.handle, list(inputs))

    def insert(self, graph: fx.Graph, inputs: Sequence[fx.Node]) -> fx.Node:
        """Append the call at the graph's insertion point; the node's value is the list of outputs."""
        return graph.call_function(REGION, (self.handle, list(inputs)))
