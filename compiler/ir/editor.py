"""The Editor: the only way to change a graph. It keeps shapes, facts and provenance right."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import Target
from torch.utils._pytree import tree_map_only

from sparsec.errors import PassRefused
from sparsec.facts.lattice import meet
from sparsec.facts.propagation import forward
from sparsec.ir.forms import constant, is_value, known_fact, notes
from sparsec.ir.miss import Miss


@dataclass(frozen=True)
class Hit:
    """What a pass did, in one line, and the node (by name) to which it did it."""

    node: str
    line: str


class Recomputation:
    """Runs single nodes on fake tensors made from the `val` of their inputs."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode()

    def __call__(self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], values: Mapping[fx.Node, Any] | None = None) -> Any:
        """The fake result of `target`; nodes among the arguments stand for their `values`, by default those noted."""

        def fake(node: fx.Node) -> Any:
            return tree_map_only(Tensor, self.like, node.meta["val"] if values is None else values[node])

        with self._mode, torch.no_grad():
            fakes = [tree_map_only(fx.Node, fake, argument) for argument in (tuple(args), dict(kwargs))]
            return target(*fakes[0], **fakes[1])  # type: ignore[operator]

    def like(self, value: Tensor) -> Tensor:
        """A fake tensor with the shape, strides, dtype and device of `value`."""
        with self._mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


class Editor:
    """Changes one graph module in place. `hits` and `misses` collect what a pass reports."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.hits: list[Hit] = []
        self.misses: list[Miss] = []
        self._compute = Recomputation()
        self._resizing = False

    # Reading

    def nodes(self) -> list[fx.Node]:
        """All nodes in order, as a list that later changes do not touch."""
        return list(self.graph.nodes)

    def constant(self, node: object) -> Tensor | None:
        """See `sparsec.ir.forms.constant`."""
        return constant(node)

    # Reporting

    def hit(self, node: fx.Node | str, line: str) -> None:
        """Record that the pass changed or marked `node`."""
        self.hits.append(Hit(str(node), line))

    def miss(self, node: fx.Node, reason: str) -> None:
        """Record why the pass left `node` alone."""
        self.misses.append(Miss(reason, node))

    # Changing

    def note(self, node: fx.Node, **entries: Any) -> None:
        """Record entries (fact, layout, region, ...) that must survive, under meta["custom"]["sparsec"]."""
        custom = dict(node.meta.get("custom", {}))
        custom["sparsec"] = {**custom.get("sparsec", {}), **entries}
        node.meta["custom"] = custom

    def call(
        self,
        target: Target,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        before: fx.Node,
        sources: Iterable[fx.Node] = (),
    ) -> fx.Node:
        """Insert a call before a node; its value and fact are computed, its provenance is that of `sources`."""
        kwargs = dict(kwargs or {})
        value = self._compute(target, args, kwargs)
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, tuple(args), kwargs)  # type: ignore[arg-type]
        node.meta["val"] = value
        self._describe(node, sources or (before,))
        return node

    def add_constant(self, tensor: Tensor, name: str, *, before: fx.Node, sources: Iterable[fx.Node] = ()) -> fx.Node:
        """Insert a constant before a node, under a name not in use; the tensor is stored detached and contiguous."""
        name = self._free_name(name)
        stored = tensor.detach().contiguous()
        self.graph_module.register_buffer(name, stored)
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(name)
        node.meta["val"] = self._compute.like(stored)
        self._describe(node, sources or (before,))
        return node

    def replace(
        self,
        node: fx.Node,
        target: Target,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        absorbed: Iterable[fx.Node] = (),
    ) -> fx.Node:
        """Put a call in the place of `node`; `absorbed` names further nodes whose work it does.

        The fact of the old value stays proved, so it is kept. PassRefused for another shape or dtype.
        """
        made = self.call(target, args, kwargs, before=node, sources=(*absorbed, node))
        return self.substitute(node, made)

    def substitute(self, node: fx.Node, other: fx.Node) -> fx.Node:
        """Let all users of `node` read `other`, which means the same, and erase `node`.

        PassRefused for another shape or dtype.
        """
        self._refuse_other(node, other)
        node.replace_all_uses_with(other)
        if "fact" in notes(node):
            self.note(other, fact=meet(known_fact(other), known_fact(node)))
        self.graph.erase_node(node)
        return other

    def erase(self, node: fx.Node) -> None:
        """Remove a node that nobody reads. PassRefused where somebody does."""
        if node.users:
            readers = ", ".join(user.name for user in node.users)
            raise PassRefused(f"Node {node.name} cannot be erased.", why=f"It is read by {readers}.")
        self.graph.erase_node(node)

    def sweep(self) -> int:
        """Erase what no output needs, constants included; the number of nodes gone. Placeholders stay."""
        gone = [node for node in reversed(self.nodes()) if self._is_dead(node)]
        self.graph_module.delete_all_unused_submodules()
        self._drop_unread_constants()
        return len(gone)

    def _is_dead(self, node: fx.Node) -> bool:
        dead = not node.users and node.op in ("call_function", "get_attr") and not node.is_impure()
        if dead:
            self.graph.erase_node(node)
        return dead

    def _drop_unread_constants(self) -> None:
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        named = [*self.graph_module.named_buffers(), *self.graph_module.named_parameters()]
        for name, _ in named:
            if name not in read:
                owner, _, attribute = name.rpartition(".")
                delattr(self.graph_module.get_submodule(owner), attribute)

    @contextmanager
    def resizing(self) -> Iterator[None]:
        """Inside, `set_args` may change the shapes of inner values; on leaving, all values are computed again.

        PassRefused where an output of the graph would change its shape or dtype.
        """
        before = self._outputs()
        self._resizing = True
        try:
            yield
        finally:
            self._resizing = False
        for node in self.graph.nodes:
            if node.op == "call_function":
                node.meta["val"] = self._compute(node.target, node.args, node.kwargs)
                if "fact" in notes(node):
                    self.note(node, fact=forward(node))
        if self._outputs() != before:
            raise PassRefused("A resize would change the outputs of the graph.", why=f"{before} → {self._outputs()}")

    def set_args(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> None:
        """Give a node other arguments. PassRefused for another shape or dtype, except inside `resizing`."""
        kwargs = dict(node.kwargs if kwargs is None else kwargs)
        if not self._resizing:
            value = self._compute(node.target, args, kwargs)
            _refuse_value(node, node.meta["val"], value)
        node.args, node.kwargs = tuple(args), kwargs

    # Inside

    def _outputs(self) -> list:
        (output,) = self.graph.find_nodes(op="output")
        return [shape_and_dtype(node.meta.get("val")) for node in output.all_input_nodes]

    def _refuse_other(self, node: fx.Node, other: fx.Node) -> None:
        try:
            _refuse_value(node, node.meta["val"], other.meta["val"])
        except PassRefused:
            if not other.users:
                self.graph.erase_node(other)
            raise

    def _describe(self, node: fx.Node, sources: Iterable[fx.Node]) -> None:
        if source := merged_source(sources):
            self.note(node, source=source)
        if is_value(node) and any("fact" in notes(source) for source in (*node.all_input_nodes, *sources)):
            self.note(node, fact=forward(node))

    def _free_name(self, wish: str) -> str:
        name = base = re.sub(r"\W", "_", wish) or "constant"
        count = 0
        while hasattr(self.graph_module, name):
            count += 1
            name = f"{base}_{count}"
        return name


def merged_source(nodes: Iterable[fx.Node]) -> str:
    """The user's source lines of several nodes, each once, in order."""
    lines = [line for node in nodes for line in str(notes(node).get("source", "")).split("; ") if line]
    return "; ".join(dict.fromkeys(lines))


def shape_and_dtype(value: Any) -> Any:
    """The shape and dtype of each tensor in a value, other leaves as they are."""
    return tree_map_only(Tensor, lambda tensor: (tuple(tensor.shape), tensor.dtype), value)


def _refuse_value(node: fx.Node, old: Any, value: Any) -> None:
    if shape_and_dtype(old) != shape_and_dtype(value):
        raise PassRefused(
            f"Node {node.name} cannot be replaced by a value of another shape or dtype.",
            where=str(notes(node).get("source", "")),
            why=f"It is {shape_and_dtype(old)}, the replacement {shape_and_dtype(value)}.",
        )
