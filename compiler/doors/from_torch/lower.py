"""An exported program becomes a plain graph: parameters as get_attr constants, static values, user's source lines."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    TensorArgument,
)
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsec.doors.from_torch.aliasing import Aliasing, aliasing_of, root_of
from sparsec.doors.from_torch.dense_weights import plain
from sparsec.doors.from_torch.randomness import arguments, is_random
from sparsec.doors.from_torch.strides import OF_STORAGE, TORCH_FOLDER
from sparsec.errors import UnsupportedModel
from sparsec.ir.editor import Recomputation

aten = torch.ops.aten
FRAME = re.compile(r'File "([^"]+)", line (\d+)')
STORED = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}

#: Views that fail where strides do not fit: a reshape never does.
_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})
#: What needs elements that are next to each other in shape next to each other in memory.
_OF_MEMORY = OF_STORAGE | {aten.view.dtype, aten.view_as_complex.default}


@dataclass(frozen=True)
class Fixed:
    """A leaf of the arguments or results that is no tensor: a part of the program."""

    value: Any


Slot = Fixed | int


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph and the signature it came with; a slot is a position among the graph's inputs or outputs, or Fixed.

    attributes: for each constant in use its name in the program and its name in the graph. out_slots are positions among the
    results, which ``aliasing`` makes of what the graph returns, None where that is the results. views: results that in torch share
    memory with an input or a constant. reads_storage: whether results depend on the strides of inputs.
    """

    graph_module: fx.GraphModule
    attributes: dict[str, str]
    call_spec: Any
    in_slots: tuple[Slot, ...]
    out_slots: tuple[Slot, ...]
    keywords: Sequence[str]
    aliasing: Aliasing | None
    views: tuple[str, ...]
    reads_storage: bool


def lower(program: ExportedProgram, graph: fx.Graph | None = None) -> Lowered:
    """Lift the constants of a functional program. UnsupportedModel for effects, objects and random numbers.

    graph: stands for the program's own, with the same inputs and outputs.
    """
    return _Lowering(program, graph or program.graph).run()


class _Lowering:
    def __init__(self, program: ExportedProgram, given: fx.Graph) -> None:
        self.program, self.given = program, given
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.moved: dict[fx.Node, fx.Node] = {}
        self.names: dict[int, str] = {}
        self.attributes: dict[str, str] = {}
        self.like = Recomputation().like
        self.results = list(dict.fromkeys(value for value in given.output_node().args[0] if isinstance(value, fx.Node)))  # type: ignore
        self.roots = {root_of(node) for node in self.results}

    def run(self) -> Lowered:
        signature = self.program.graph_signature
        inputs = {entry.arg.name: entry for entry in signature.input_specs}
        for node in self.given.nodes:
            if node.op == "placeholder":
                self._place(node, inputs[node.name])
            elif node.op == "get_attr":
                raise UnsupportedModel("The model holds a subgraph.", where=source_of(node), why=str(node.target))
            elif node.op == "call_function":
                self._copy(node)
        self._check_effects()
        given = [node for node, made in self.moved.items() if made.op == "placeholder"]
        aliasing, returned = aliasing_of(self.results, given)
        self.graph.output(tuple(self.moved[value] for value in returned)).meta["val"] = None
        module = fx.GraphModule(self.root, self.graph)
        in_slots = _slots([entry.arg for entry in signature.input_specs if entry.kind == InputKind.USER_INPUT])
        keywords = self.program.call_spec.in_spec.child(1).context
        views = tuple(source_of(node) or node.name for node in self.results if root_of(node).op != "call_function")
        reads = any(node.target in OF_STORAGE for node in self.given.nodes)
        return Lowered(module, self.attributes, self.program.call_spec, in_slots, self._out_slots(), keywords, aliasing, views, reads)

    def _place(self, node: fx.Node, entry: InputSpec) -> None:
        if entry.kind in STORED:
            if node.users:
                self.moved[node] = self._constant(entry)
        elif entry.kind != InputKind.USER_INPUT:
            raise UnsupportedModel("The model takes an object that is no tensor.", where=node.name, why=str(entry.kind))
        elif isinstance(entry.arg, TensorArgument):
            self.moved[node] = self.graph.placeholder(node.name)
            self._describe(self.moved[node], node)

    def _constant(self, entry: InputSpec) -> fx.Node:
        stored = self.program.constants if entry.target in self.program.constants else self.program.state_dict
        tensor = stored[str(entry.target)]
        if id(tensor) not in self.names:
            self.names[id(tensor)] = self._free_name(str(entry.target).removeprefix("graph_module."))
            self.root.register_buffer(self.names[id(tensor)], plain(tensor))
        name = self.attributes[str(entry.target)] = self.names[id(tensor)]
        known = self.graph.find_nodes(op="get_attr")
        node = next((found for found in known if found.target == name), None) or self.graph.get_attr(name)
        node.meta["val"] = self.like(getattr(self.root, name))
        return node

    def _free_name(self, target: str) -> str:
        name = base = re.sub(r"\W", "_", target)
        while hasattr(self.root, name):
            name = f"{name}_{len(self.names)}" if name == base else f"{name}_"
        return name

    def _copy(self, node: fx.Node) -> None:
        if is_random(node):
            raise UnsupportedModel("The model draws random numbers.", where=source_of(node), why=str(node.target))
        if (written := _written_unsaid(node)) is not None:
            what = f"The model writes to {written.name!r} while it runs."
            raise UnsupportedModel(what, where=source_of(node), why=str(node.target), hint="Keep state outside, or leave it dense.")
        if node.target is aten._assert_tensor_metadata.default:
            return
        check_sizes(node)
        if node not in self.roots and _is_idle_clone(node):
            self.moved[node] = self.moved[node.all_input_nodes[0]]
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            self._restore_batch_norm(node)
        elif node not in self.moved:
            self.moved[node] = self._free_of_strides(node)
            self._describe(self.moved[node], node)

    def _free_of_strides(self, node: fx.Node) -> fx.Node:
        """A copy of a node that runs and means the same whatever strides passes give its operands."""
        if node.target in _OF_MEMORY:
            source = node.all_input_nodes[0]
            if node.target in OF_STORAGE and (not _owns_all(source.meta["val"]) or self._is_placed(node)):
                what = "The model reads memory around a tensor, by its strides."
                raise UnsupportedModel(what, where=source_of(node), why=f"{node.target} of {source.name}", hint="Index the whole tensor.")
            self.moved[node] = self._in_order(source)
            return self.graph.node_copy(node, lambda operand: self.moved[node if operand is source else operand])
        made = self.graph.node_copy(node, self.moved.__getitem__)
        if node.target in _VIEWS:
            made.target = aten.reshape.default
        return made

    def _is_placed(self, node: fx.Node) -> bool:
        """Whether an operator counts from where the memory of an input begins, which differs from call to call."""
        origin = self.moved[root_of(node.all_input_nodes[0])]
        given = arguments(node.target._schema, node.args, node.kwargs)  # type: ignore[union-attr]
        return origin.op == "placeholder" and given.get("storage_offset") is not None

    def _in_order(self, source: fx.Node) -> fx.Node:
        """A value in row-major order, as an operator that reads memory finds it."""
        made = self.graph.call_function(aten.clone.default, (self.moved[source],), {"memory_format": torch.contiguous_format})
        self._describe(made, source)
        made.meta["val"] = made.meta["val"].contiguous()
        made.meta["custom"]["sparsec"]["root"] = True
        return made

    def _restore_batch_norm(self, node: fx.Node) -> None:
        """_native_batch_norm_legit_no_training(...)[0] → batch_norm(...)."""
        *tensors, momentum, epsilon = [self.moved.get(a, a) if isinstance(a, fx.Node) else a for a in node.args]
        for user in node.users:
            if user.args[1] != 0:
                raise UnsupportedModel("The model reads the statistics of a normalisation.", where=source_of(node))
            args = (*tensors, False, momentum, epsilon, False)
            self.moved[user] = self.graph.call_function(aten.batch_norm.default, args)
            self._describe(self.moved[user], user)

    def _describe(self, node: fx.Node, origin: fx.Node) -> None:
        for value in filter(lambda leaf: isinstance(leaf, Tensor), tree_leaves(origin.meta["val"])):
            if value.device.type != "cpu":
                hint = "Programs run on the CPU: make all values there. torch.compile leaves such graphs to torch."
                raise UnsupportedModel(f"A value is on the device {value.device}.", where=source_of(origin), why=origin.name, hint=hint)
            if value.layout != torch.strided:
                # Inductor takes the memory that such a tensor is made of for free once it is made, and gives it to other values.
                hint = "Use torch.compile, which leaves what makes such tensors to torch. Weights may have any layout."
                raise UnsupportedModel(f"A value has the layout {value.layout}.", where=source_of(origin), why=origin.name, hint=hint)
        kept = dict(origin.meta.get("custom", {}).get("sparsec", {}))
        kept.setdefault("source", source_of(origin))
        node.meta = {"val": tree_map_only(Tensor, self.like, origin.meta["val"]), "custom": {"sparsec": kept}}

    def _check_effects(self) -> None:
        for entry in self.program.graph_signature.output_specs:
            if entry.kind != OutputKind.USER_OUTPUT:
                what = f"The model writes to {entry.target!r} while it runs."
                raise UnsupportedModel(what, why=entry.kind.name.lower(), hint="Keep state outside, or leave it dense.")

    def _out_slots(self) -> tuple[Slot, ...]:
        """A result that is returned twice has one position."""
        entries = [entry.arg for entry in self.program.graph_signature.output_specs]
        returned = [value for value in self.given.output_node().args[0] if isinstance(value, fx.Node)]  # type: ignore[union-attr]
        return tuple(slot if isinstance(slot, Fixed) else self.results.index(returned[slot]) for slot in _slots(entries))


def _written_unsaid(node: fx.Node) -> fx.Node | None:
    """Whose memory holds the running statistics of an instance_norm that takes those of its input: it writes to them unsaid."""
    if node.target is not aten.instance_norm.default or not node.args[5]:
        return None
    return next((root_of(operand) for operand in node.args[3:5] if isinstance(operand, fx.Node)), None)


def source_of(node: fx.Node) -> str:
    """The module path and the user's source line of a node, as in "features.0 (model.py:12)"; empty if unknown."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = re.sub(r"^L\['\w+'\]\.?", "", str(stack[-1][0])) if stack else ""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    own = [f"{os.path.basename(name)}:{line}" for name, line in frames if not name.startswith(TORCH_FOLDER)]
    line = f"({own[-1]})" if own else ""
    return f"{path} {line}".strip()


def check_sizes(node: fx.Node) -> None:
    """UnsupportedModel where the sizes or numbers of a value depend on the values of another."""
    if free_unbacked_symbols(node.meta.get("val")):
        raise UnsupportedModel(
            "The size of a value, or a number, depends on values.",
            where=source_of(node) or node.name,
            why=str(node.target),
            hint="Use torch.compile, which splits the model there.",
        )


def _owns_all(tensor: Tensor) -> bool:
    """Whether a tensor is all of its memory, in row-major order."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _slots(entries: Sequence[Any]) -> tuple[Slot, ...]:
    """Positions for tensors, values for the rest."""
    slots: list[Slot] = []
    position = 0
    for entry in entries:
        if isinstance(entry, TensorArgument):
            slots.append(position)
            position += 1
        elif isinstance(entry, ConstantArgument):
            slots.append(Fixed(entry.value))
        else:
            raise UnsupportedModel("The model takes or returns a number that depends on its inputs.", why=str(entry))
    return tuple(slots)


def _is_idle_clone(node: fx.Node) -> bool:
    """Whether a clone only repeats a value computed in the graph: in a functional graph nobody can tell, but for results."""
    if node.target is not aten.clone.default or not isinstance(node.args[0], fx.Node):
        return False
    origin = node.args[0]
    return origin.meta["val"].stride() == node.meta["val"].stride() and origin.op == "call_function"
