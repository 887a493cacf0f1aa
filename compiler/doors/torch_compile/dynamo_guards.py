"""Which of Dynamo's guards a ``Watch`` can stand for, and putting it in their place while the graph is being compiled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.source import LocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import Guard, Source, TracingContext

from sparsec.doors.torch_compile import stamps as torch_memory
from sparsec.doors.torch_compile.watch import CONTAINERS, Watch, unsteady

#: Guards that hold as long as what is found under their name has the same ``_fingerprint``.
_BY_VALUE = (
    "TYPE_MATCH",
    "CONSTANT_MATCH",
    "EQUALS_MATCH",
    "SEQUENCE_LENGTH",
    "DICT_KEYS_MATCH",
    "EMPTY_NN_MODULE_HOOKS_DICT",
    "TENSOR_MATCH",
)
_ABSENT = "NOT_PRESENT_IN_GENERIC_DICT"
_IMMUTABLE = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.layout)


def watch(graph_module: fx.GraphModule, weights: Sequence[int]) -> Watch | None:
    """Let a Watch stand for Dynamo's guards on the module whose parameters are the placeholders ``weights`` of the graph being compiled.

    Takes the guards off and the placeholders out of the graph: the compiled function is then called with the other inputs only. Does
    nothing and returns None where that cannot be right: gradients may be needed, or the weights are of no one module or not all reached
    through dictionaries of modules; or where modules of this class were seen to change at almost every call.
    """
    context = TracingContext.try_get()
    if torch.is_grad_enabled() or context is None or not weights or not torch_memory.can_read():
        return None
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    sources = [getattr(placeholders[i].meta.get("grapharg"), "source", None) for i in weights]
    roots = {_root(source) for source in sources}
    root = roots.pop()
    if roots or root is None:
        return None
    reader = _Reader(root)
    if (
        reader.module is None
        or type(reader.module) in unsteady
        or not all(source is not None and reader.covers(source) for source in sources)
    ):
        return None
    guards = context.guards_context.dynamo_guards.inner
    replaced = [guard for guard in guards if _root(guard.originating_source) == root and _replaceable(guard, reader)]
    absent = [guard for guard in replaced if guard.create_fn_name() == _ABSENT]
    paths = {guard.name for guard in replaced if guard not in absent}
    try:
        made = Watch(
            root.name,
            sorted(paths),
            [(guard.name, guard.create_fn.keywords["attr"]) for guard in absent],  # type: ignore[attr-defined]
            [source.name for source in sources],  # type: ignore[union-attr]
        )
    except SyntaxError:
        return None
    if not made(reader.module):
        return None
    for guard in replaced:
        guards.discard(guard)
    guards.add(Guard(root, functools.partial(_install, made)))
    for position in weights:
        _take_out(graph_module.graph, placeholders[position])
    return made


class _Reader:
    """Values under the names that guards have, and whether they are reached through stamped dictionaries only."""

    def __init__(self, root: Source) -> None:
        scope = InstructionTranslator.current_tx().output.local_scope
        module = scope.get(root.local_name)  # type: ignore[attr-defined]
        self.module = module if isinstance(module, nn.Module) else None
        self._scope = {"L": scope}
        self._covered: dict[Source, bool] = {root: True}
        self._values: dict[Source, Any] = {root: module}
        self._contents: dict[int, set[int]] = {}

    def value(self, source: Source) -> Any:
        """What ``source`` names in the frame being compiled."""
        if source not in self._values:
            self._values[source] = eval(source.name, self._scope)
        return self._values[source]

    def covers(self, source: Source) -> bool:
        """Whether no other value can come under this name without a change to a dictionary of a module."""
        source = _bare(source)
        if source not in self._covered:
            base = _base(source)
            self._covered[source] = base is not None and self.covers(base) and self._holds(base, self.value(source))
        return self._covered[source]

    def _holds(self, base: Source, value: Any) -> bool:
        owner = self.value(base)
        if isinstance(owner, tuple):
            return _is_immutable(owner)
        if id(owner) not in self._contents:
            self._contents[id(owner)] = set(map(id, self._items(base, owner)))
        return id(value) in self._contents[id(owner)]

    def _items(self, base: Source, owner: Any) -> list[Any]:
        if isinstance(owner, nn.Module):
            state = vars(owner)
            return [state, *state.values(), *(value for name in CONTAINERS for value in state.get(name, {}).values())]
        above = _base(base)
        if isinstance(owner, dict) and above is not None and isinstance(self.value(above), nn.Module):
            return [*owner, *owner.values()]
        return []


def _base(source: Source) -> Source | None:
    """What ``source`` is a part of."""
    base = getattr(_bare(source), "base", None)
    return None if base is None else _bare(base)


def _bare(source: Source) -> Source:
    """``source`` without the classes that only say of what kind it is."""
    while (base := getattr(source, "base", None)) is not None and base.name == source.name:
        source = base
    return source


def _root(source: Source | None) -> Source | None:
    """The local variable of the frame that ``source`` starts from."""
    while (base := getattr(source, "base", None)) is not None:
        source = base
    return source if isinstance(source, LocalSource) else None


def _replaceable(guard: Guard, reader: _Reader) -> bool:
    kind, source = guard.create_fn_name(), guard.originating_source
    if kind not in (*_BY_VALUE, _ABSENT) or not reader.covers(source):
        return False
    value = reader.value(source)
    if kind == "TYPE_MATCH" and _is_immutable(value):
        return False  # a number that may change
    return isinstance(value, nn.Module) if kind == _ABSENT else isinstance(value, nn.Module | Tensor | dict) or _is_immutable(value)


def _is_immutable(value: Any) -> bool:
    return type(value) in _IMMUTABLE or (type(value) in (tuple, torch.Size) and all(map(_is_immutable, value)))


def _install(made: Watch, builder: GuardBuilder, guard: Guard) -> None:
    builder.get_guard_manager(guard).add_lambda_guard(made, [f"the modules of {guard.name} and what they hold are as they were"], None)


def _take_out(graph: fx.Graph, placeholder: fx.Node) -> None:
    with graph.inserting_before(placeholder):
        placeholder.replace_all_uses_with(graph.create_node("get_attr", placeholder.name))
    graph.erase_node(placeholder)
    placeholder.meta.pop("grapharg")  # a weak reference to a weight, which Dynamo takes away from placeholders that are left
