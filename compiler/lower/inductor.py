"""Handing graphs to Inductor: whole dense models, and dense graphs with sparse regions inside."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.convert_frame import compile_lock

from sparsec.errors import MachineError
from sparsec.lower.region_op import REGION
from sparsec.tools.compiling import compiling


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
        with compiling():
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
            hint="Install g++, or set CXX to a C++ compiler.",
        ) from error


def retrace_dense(graph_module: fx.GraphModule) -> Callable[..., Sequence[Any]]:
    """Compile one of Dynamo's graphs after Dynamo has left it: traced again, with guards and any sizes of its own."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    return torch.compile(fx.GraphModule(graph_module, graph), backend="inductor")
