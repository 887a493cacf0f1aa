"""The verifier that runs after every pass."""

from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from sparsec.errors import VerificationError
from sparsec.ir.editor import Recomputation, shape_and_dtype
from sparsec.ir.form_checks import check
from sparsec.ir.forms import Form, lookup, notes


class Verifier:
    """Checks graphs; remembers which calls it has computed, so that unchanged nodes cost nothing the next time."""

    def __init__(self) -> None:
        self._compute = Recomputation()
        self._known: dict[tuple, Any] = {}

    def __call__(self, graph_module: fx.GraphModule, form: Form) -> None:
        """Raise VerificationError unless the graph is well formed, of `form`, and every value has its true shape."""
        _check_order(graph_module.graph)
        try:
            graph_module.graph.lint()
        except (RuntimeError, ValueError) as error:
            raise VerificationError("The graph is not well formed.", why=str(error)) from error
        check(form, graph_module)
        values: dict[fx.Node, Any] = {}
        for node in graph_module.graph.nodes:
            if node.op == "get_attr":
                values[node] = lookup(graph_module, str(node.target))
            elif node.op == "call_function":
                values[node] = self._computed(node, values)
            elif node.op == "placeholder":
                values[node] = node.meta["val"]
            if node.op != "output":
                _compare(node, values[node])

    def _computed(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """The value from the values before it, strides included: a `view` may fail where only these have changed."""
        key = (node.target, str(_signature(node.args, values)), str(_signature(node.kwargs, values)))
        if key not in self._known:
            try:
                self._known[key] = self._compute(node.target, node.args, node.kwargs, values)
            except Exception as error:
                raise VerificationError("A node cannot be executed.", where=_place(node), why=str(error)) from error
        return self._known[key]


def _compare(node: fx.Node, value: Any) -> None:
    recorded, computed = shape_and_dtype(node.meta.get("val")), shape_and_dtype(value)
    if recorded != computed:
        raise VerificationError("A node does not have the value it says.", where=_place(node), why=f"{recorded} ≠ {computed}")


def _check_order(graph: fx.Graph) -> None:
    seen: set[fx.Node] = set()
    for node in graph.nodes:
        for producer in node.all_input_nodes:
            if producer not in seen:
                raise VerificationError("A node comes before its input.", where=_place(node), why=producer.name)
        seen.add(node)


def _place(node: fx.Node) -> str:
    return f"{node.name} {notes(node).get('source', '')}".rstrip()


def _signature(arguments: Any, values: dict[fx.Node, Any]) -> Any:
    """The arguments with each node replaced by shape, strides and dtype of its value."""

    def describe(node: fx.Node) -> Any:
        return tree_map_only(torch.Tensor, lambda t: (tuple(t.shape), t.stride(), t.dtype, t.device), values[node])

    return tree_map_only(fx.Node, describe, arguments)
