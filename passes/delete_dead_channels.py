"""Remove channels that nobody reads or that are constant.

    conv2d(x, W[8,·], b) ── relu ── conv2d(·, V[·,8])      →      conv2d(x, W[5,·], b) ── relu ── conv2d(·, V[·,5], b')

A constant channel k moves into the bias of its readers, b' = b + k · Σ taps V[:,c]. Where the reader pads with zeros
the border would differ, so there only zero channels go. Summands, depthwise filters and flattened columns follow.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from sparsec.facts.channel_groups import Space, Spaces
from sparsec.facts.forward import channel_values
from sparsec.facts.propagation import channels_read, reads_of
from sparsec.ir.arguments import Layer, arguments, positional
from sparsec.ir.pipeline import Context, Editor, Form, Pass


@dataclass
class Cut:
    """What one layer keeps: outputs, inputs (None: all), and the constant inputs that its bias takes over."""

    outputs: list[int] | None = None
    inputs: list[int] | None = None
    constants: dict[int, float] = field(default_factory=dict)


class DeleteDeadChannels(Pass):
    """Layers lose the channels whose values are proved unread, zero, or constant and absorbable."""

    name = "delete_dead_channels"
    takes = Form.INFERRED
    gives = Form.INFERRED

    def apply(self, edit: Editor, context: Context) -> None:
        """Until nothing more goes: a deleted output may leave inputs of its layer unread."""
        while removable := _removable(edit):
            with edit.resizing():
                _delete(edit, removable)
            edit.sweep()
        read = channels_read(edit.graph)
        for space in Spaces(edit.graph):
            _explain(edit, space, read)


def _removable(edit: Editor) -> dict[Space, frozenset[int]]:
    """Per space the channels to delete; one always stays, since no value may be empty."""
    read = channels_read(edit.graph)
    found = {}
    for space in Spaces(edit.graph):
        if space.blocked or not space.readers or not space.producers:
            continue
        gone = frozenset(range(space.channels)) - _obstacles(space, read).keys()
        if len(gone) == space.channels:
            gone -= {0}
        if gone:
            found[space] = gone
    return found


def _obstacles(space: Space, read: dict) -> dict[int, str]:
    """The channels that some reader needs, and why."""
    found: dict[int, str] = {}
    for layer in space.readers:
        values, times = channel_values(layer.x), space.times[layer.x]
        for index in dict(reads_of(layer.node, read[layer.node]))[layer.x]:
            if index not in values:
                found[index // times] = f"{layer.node.name} reads it"
            elif values[index] != 0 and layer.padding != (0, 0):
                reason = f"it is constant but not zero, and {layer.node.name} pads with zeros"
                found.setdefault(index // times, reason)
    return found


def _delete(edit: Editor, removable: dict[Space, frozenset[int]]) -> None:
    cuts: dict[fx.Node, tuple[Layer, Cut]] = {}
    for space, gone in removable.items():
        kept = [c for c in range(space.channels) if c not in gone]
        for layer in (*space.producers, *space.depthwise):
            cuts.setdefault(layer.node, (layer, Cut()))[1].outputs = kept
            edit.hit(layer.node, f"{len(gone)} of {space.channels} channels deleted")
        for layer in space.readers:
            cut = cuts.setdefault(layer.node, (layer, Cut()))[1]
            cut.inputs = [i for c in kept for i in space.indices(layer.x, c)]
            values = channel_values(layer.x)
            cut.constants = {i: values[i] for c in gone for i in space.indices(layer.x, c) if values.get(i, 0.0) != 0}
        for node in space.reshapes:
            _reshape(edit, node, len(kept) * space.times[node])
    for layer, cut in cuts.values():
        _cut_layer(edit, layer, cut)


def _reshape(edit: Editor, node: fx.Node, channels: int) -> None:
    """A literal size of dimension 1 follows; flattening by dimension numbers needs no change."""
    named = arguments(node)
    for name in ("size", "shape"):
        if name in named and len(named[name]) > 1 and named[name][1] != -1:
            size = [*named[name]]
            size[1] = channels
            edit.set_args(node, (node.args[0], size))


def _cut_layer(edit: Editor, layer: Layer, cut: Cut) -> None:
    weight, bias = layer.constants()
    shifted = bias.double() + _shift(weight, cut.constants)
    outputs = slice(None) if cut.outputs is None else cut.outputs
    smaller = weight[outputs] if cut.inputs is None else weight[outputs][:, cut.inputs]
    named = arguments(layer.node)
    named["weight"] = edit.add_constant(smaller, layer.weight.name, before=layer.node, sources=(layer.weight,))
    if layer.bias is not None or cut.constants:
        made = shifted.to(bias.dtype)[outputs]
        owner = layer.bias if layer.bias is not None else layer.weight
        named["bias"] = edit.add_constant(made, f"{layer.weight.name}_bias", before=layer.node, sources=(owner,))
    if layer.is_depthwise and cut.outputs is not None:
        named["groups"] = len(cut.outputs)
    edit.set_args(layer.node, *positional(layer.node.target, named))


def _shift(weight: Tensor, constants: dict[int, float]) -> Tensor:
    """What constant inputs add to each output, float64."""
    taps = weight[:, list(constants)].double().flatten(2).sum(2) if weight.dim() > 2 else weight[:, list(constants)].double()
    return taps @ torch.tensor(list(constants.values()), dtype=torch.float64)


def _explain(edit: Editor, space: Space, read: dict) -> None:
    """A miss for the first layer of a space that keeps constant channels."""
    for layer in (*space.producers, *space.depthwise):
        known = channel_values(layer.node)
        if known and (space.blocked or space.readers):
            obstacles = _obstacles(space, read)
            reasons = [space.blocked, *(obstacles[c] for c in known if c in obstacles), "a value needs one channel"]
            edit.miss(layer.node, f"{len(known)} constant channels stay: {next(filter(None, reasons))}")
            return
