"""Handing graphs to Inductor: whole dense models, and dense graphs with sparse regions inside."""

import itertools
import secrets
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._dynamo.convert_frame import compile_lock

from sparsec.errors import MachineError

Run = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class _Running:
    run: Run
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]


# Inductor's caches on disk know a region by its handle alone, so a handle must never mean another region elsewhere.
_handles = itertools.count(secrets.randbits(62))
_running: dict[int, _Running] = {}


def _call_region(handle: int, inputs: list[Tensor]) -> list[Tensor]:
    return _running[handle].run([x.contiguous() for x in inputs])


def _fake_region(handle: int, inputs: list[Tensor]) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype) for shape, dtype in _running[handle].outputs]


_library = torch.library.Library("sparsec", "FRAGMENT")
_library.define("region(int handle, Tensor[] inputs) -> Tensor[]")
_library.impl("region", _call_region, "CompositeExplicitAutograd")
torch.library.register_fake("sparsec::region", _fake_region, lib=_library)
REGION = torch.ops.sparsec.region.default


class RegionOp:
    """A callable as a node that Inductor leaves alone; once this object is gone, graphs with the node cannot run.

    run: takes contiguous tensors and returns a list of new, contiguous tensors, no two of them sharing memory.
    outputs: shape and dtype of each.
    """

    def __init__(self, run: Run, outputs: Sequence[tuple[Sequence[int], torch.dtype]]) -> None:
        self.handle = next(_handles)
        _running[self.handle] = _Running(run, tuple((tuple(shape), dtype) for shape, dtype in outputs))
        self.close = weakref.finalize(self, _running.pop, self.handle, None)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run through the dispatcher, as a graph does."""
        return REGION(self.handle, list(inputs))

    def insert(self, graph: fx.Graph, inputs: Sequence[fx.Node]) -> fx.Node:
        """Append the call at the graph's insertion point; the node's value is the list of outputs."""
        return graph.call_function(REGION, (self.handle, list(inputs)))


def region_op(run: Run, outputs: Sequence[tuple[Sequence[int], torch.dtype]]) -> RegionOp:
    """Make a callable usable as a node of a graph that goes to Inductor; keep the result as long as the graph."""
    return RegionOp(run, outputs)


def compile_dense(graph_module: fx.GraphModule, example_inputs: Sequence[Any], *, freezing: bool = False) -> Callable[..., Sequence[Any]]:
    """Compile a graph whose output is a flat tuple; the graph module may be changed and is not to be used again.

    One thread compiles at a time, Dynamo's own compilations included: tracing sets global state, and Inductor's patterns are global.
    freezing: get_attr constants become part of the code, so a later change of them is not seen; implies no gradients.
    Without it, gradients flow where grad mode is on and inputs require them. The result takes the graph's inputs.
    MachineError without a C++ compiler.
    """
    from torch._inductor.compile_fx import compile_fx

    patches: dict[str, Any] = {"freezing": freezing}
    if any(node.target is REGION for node in graph_module.graph.nodes):
        patches |= {"layout_optimization": False, "fx_graph_cache": False}
    compiled = partial(compile_fx, graph_module, list(example_inputs), config_patches=patches)
    with _compiler_needed():
        if not freezing:
            with compile_lock:
                return cast(Callable[..., Sequence[Any]], compiled())
        with compile_lock, torch.inference_mode(False), torch.no_grad(), torch._guards.tracing(None):
            return cast(Callable[..., Sequence[Any]], compiled())


@contextmanager
def _compiler_needed() -> Iterator[None]:
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    try:
        yield
    except InductorError as error:
        if not isinstance(error.inner_exception, InvalidCxxCompiler):
            raise
        raise MachineError(
            "What no kernel covers cannot be compiled.",
            why="Inductor of torch compiles it as C++, and finds no C++ compiler.",
            hint="Install g++ or clang++, or set CXX to one.",
        ) from error


def retrace_dense(graph_module: fx.GraphModule) -> Callable[..., Sequence[Any]]:
    """Compile one of Dynamo's graphs after Dynamo has left it: traced again, with guards and any sizes of its own."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    return torch.compile(fx.GraphModule(graph_module, graph), backend="inductor")
