"""One captured graph for all instances of a module: a second set of weights needs no second export."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.dense_weights import plain


def signature(args: Sequence[Any]) -> tuple:
    """What a captured graph depends on: shape and dtype of each tensor, the value of each number."""
    return tuple((arg.shape, arg.dtype) if isinstance(arg, Tensor) else arg for arg in args)


class Template:
    """A captured graph without its weights. origins: for each constant that is a weight, its position in a call."""

    def __init__(self, captured: Captured, origins: Mapping[str, int]) -> None:
        constants = dict(captured.graph_module.named_buffers())
        self.origins = dict(origins)
        self.others = {name: value for name, value in constants.items() if name not in origins}
        self.graph = captured.graph_module.graph
        self.captured = replace(captured, graph_module=fx.GraphModule(nn.Module(), fx.Graph()))

    def bind(self, args: Sequence[Any]) -> Captured:
        """The captured graph with the weights of this call; args have the template's signature."""
        root, graph = nn.Module(), fx.Graph()
        for name, value in self.others.items():
            root.register_buffer(name, value)
        for name, position in self.origins.items():
            root.register_buffer(name, plain(args[position]))
        graph.output(graph.graph_copy(self.graph, {})).meta["val"] = None
        return replace(self.captured, graph_module=fx.GraphModule(root, graph))
