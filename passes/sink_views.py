"""Let views of tokens sink below the layers that work on each token alone, until they meet their inverses.

x ── transpose 0 1 ── linear ── view [T·N,F] ── linear ── view [T,N,F] ── transpose 0 1      →      x ── linear ── linear

Where attention turns tokens of a value [T,N,F], they are turned at its source instead, so that all in between is [N,T,F].
"""

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from sparsec.ir.arguments import activation_of, arguments
from sparsec.ir.forms import constant, is_value
from sparsec.ir.pipeline import Context, Editor, Form, Pass
from sparsec.tokens import ops as token_ops
from sparsec.tokens.axes import Atom, Dim, View, axis_of, build, factor_of, is_view, order_of, view_of

aten = torch.ops.aten
SUMS = frozenset({aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor})


class SinkViews(Pass):
    """Views that cancel go; views that do not move towards the outputs."""

    name = "sink_views"
    takes = Form.CAPTURED
    gives = Form.CAPTURED

    def apply(self, edit: Editor, context: Context) -> None:
        """Sink, turn what attention still finds turned, sink again."""
        _sink_all(edit)
        if _turn_sources(edit):
            _sink_all(edit)
        edit.sweep()


def _sink_all(edit: Editor) -> None:
    for node in edit.nodes():
        if node._erased or node.op != "call_function" or not is_value(node):
            continue
        made = _shortened(edit, node) if is_view(node) else _sunk(edit, node)
        if made is not None:
            edit.hit(node, made)


def _shortened(edit: Editor, node: fx.Node) -> str | None:
    """A chain of views that ends where it began is nothing; one of several steps is one step where there is one."""
    view = view_of(node)
    if view.root is node or (view.root.op != "call_function" and any(user.op == "output" for user in node.users)):
        return None
    if view.is_whole:
        edit.substitute(node, view.root)
        return f"the same as {view.root.name}"
    if node.args[0] is not view.root and _is_last(node) and (found := _one_step(view)) is not None:
        edit.replace(node, found[0], (view.root, *found[1]), found[2])
        return f"one view of {view.root.name}"
    return None


def _is_last(node: fx.Node) -> bool:
    return not any(is_view(user) for user in node.users)


def _one_step(view: View) -> tuple[Any, tuple, dict[str, Any]] | None:
    """The one operator that shows tokens [N,T,F] as a view does: another order, one token, or a map of pixels."""
    whole = View.whole(view.root)
    if len(whole.dims) != 3 or view.factor != 1:
        return None
    samples, tokens, features = whole.dims
    if view.dims == (samples, features) and tokens and view.starts[0] == view.starts[2] == 0:
        return aten.select.int, (1, view.starts[1]), {}
    if not view.is_rearrangement:
        return None
    if (order := order_of(view)) is not None:
        return aten.permute.default, (order,), {}
    if len(view.dims) == 4 and view.dims[:2] == (samples, features) and view.dims[2] + view.dims[3] != ():
        return _as_map(view, tokens)
    return None


def _as_map(view: View, tokens: Dim) -> tuple[Any, tuple, dict[str, Any]] | None:
    height, width = view.shape[2:]
    row = (Atom(1, width, height),) if height > 1 else ()
    pixel = (Atom(1, 1, width),) if width > 1 else ()
    fits = tokens and view.dims[2:] == (row, pixel)
    return (token_ops.tokens_to_map, (), {"height": height, "width": width}) if fits else None


def _sunk(edit: Editor, node: fx.Node) -> str | None:
    """f(view(x)) → view(f(x)) for what keeps the features of each token together."""
    operands = _operands(node)
    views = [view_of(operand) for operand in operands]
    if not operands or not all(_is_arrangement(view) for view in views) or any(v.dims != views[0].dims for v in views):
        return None
    if len({view.root.meta["val"].shape[:2] for view in views}) > 1 or all(view.is_whole for view in views):
        return None
    swaps = dict(zip(operands, (view.root for view in views), strict=True))
    args = _swapped(edit, node, swaps, views[0])
    if args is None:
        return None
    made = edit.call(node.target, args, node.kwargs, before=node, sources=(node,))
    view = replace(View.whole(made), dims=(*views[0].dims[:-1], axis_of(made, 2)))
    edit.substitute(node, build(edit, view, node))
    return "works on tokens [N,T,F]"


def _operands(node: fx.Node) -> list[fx.Node]:
    """The token values that a node works on, token by token; none where it does not."""
    if node.target in (aten.linear.default, aten.layer_norm.default):
        one_axis = node.target is aten.linear.default or len(arguments(node)["normalized_shape"]) == 1
        return [node.args[0]] if one_axis else []  # type: ignore[list-item]
    if activation_of(node) is not None:
        return node.all_input_nodes[:1]
    if factor_of(node) is not None:
        return [factor_of(node)[0]]  # type: ignore[index]
    if node.target not in SUMS:
        return []
    found = [arg for arg in node.args[:2] if isinstance(arg, fx.Node) and constant(arg) is None]
    return found if all(is_value(f) and f.meta["val"].shape == node.meta["val"].shape for f in found) else []


def _is_arrangement(view: View) -> bool:
    """All of [a,b,F] with the features as the last dimension."""
    root = view.root.meta["val"]
    return root.dim() == 3 and len(view.dims) > 1 and view.is_rearrangement and view.dims[-1] == axis_of(view.root, 2)


def _swapped(edit: Editor, node: fx.Node, swaps: dict[fx.Node, fx.Node], view: View) -> tuple | None:
    """The arguments with views replaced by roots, and constants that are added to tokens arranged like the roots."""
    args = []
    for argument in node.args:
        if node.target in SUMS and constant(argument) is not None:
            argument = _arranged(edit, argument, view)  # type: ignore[arg-type]
            if argument is None:
                return None
        args.append(swaps.get(argument, argument) if isinstance(argument, fx.Node) else argument)
    return tuple(args)


def _arranged(edit: Editor, node: fx.Node, view: View) -> fx.Node | None:
    """A constant that fits a view of the root, made to fit the root; None where it varies along merged tokens."""
    tensor = constant(node)
    if tensor is None or all(size == 1 for size in tensor.shape[:-1]):
        return node if tensor is None or tensor.dim() <= 3 else None
    order = [_axis(dim) for dim in view.dims]
    if tensor.dim() < 2 or sorted(order) != [0, 1, 2]:
        return None
    shaped = tensor.reshape((1,) * (3 - tensor.dim()) + tensor.shape)
    return edit.add_constant(
        shaped.permute([order.index(axis) for axis in range(3)]), f"{node.name}_arranged", before=node, sources=(node,)
    )


def _axis(dim: Dim) -> int:
    return dim[0].axis if len(dim) == 1 else -1


def _turn_sources(edit: Editor) -> bool:
    """Turn [T,N,F] into [N,T,F] at the first values that become operands of attention token by token."""
    turned: set[fx.Node] = set()
    for node in edit.nodes():
        if node.target is token_ops.attention:
            for operand in node.args[:3]:
                view = view_of(operand)  # type: ignore[arg-type]
                if _is_arrangement(view) and [_axis(dim) for dim in view.dims] == [1, 0, 2]:
                    turned |= _sources(view.root)
    for source in sorted(turned):
        _turn(edit, source)
    return bool(turned)


def _sources(node: fx.Node) -> set[fx.Node]:
    """Where a value that is computed token by token comes from; what a view shows turned is not turned itself."""
    found, waiting, seen = set(), [node], set()
    while waiting:
        current = waiting.pop()
        if current in seen or current.meta["val"].dim() != 3:
            continue
        seen.add(current)
        views = [] if current.op == "placeholder" else [view_of(operand) for operand in _operands(current)]
        found |= set() if views else {current}
        waiting += [view.root for view in views if view.is_whole]
    return found


def _turn(edit: Editor, node: fx.Node) -> None:
    after = node.next
    while after.op == "placeholder":
        after = after.next
    users = list(node.users)
    turned = edit.call(aten.permute.default, (node, [1, 0, 2]), before=after, sources=(node,))
    edit.note(turned, root=True)
    back = edit.call(aten.permute.default, (turned, [1, 0, 2]), before=after, sources=(node,))
    for user in users:
        if user.op != "output":
            args, kwargs = fx.map_arg((user.args, user.kwargs), lambda used: back if used is node else used)
            edit.set_args(user, args, kwargs)
    edit.hit(node, "turned to [N,T,F]")
