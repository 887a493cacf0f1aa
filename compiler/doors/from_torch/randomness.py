"""Which operators draw random numbers for the arguments that they are given; dropout that is off, as eager mode has it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.overrides import TorchFunctionMode

_DROPOUTS = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout})
_OPERATORS = frozenset({torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout})
_SWITCHES, _RATES = ("train", "training"), ("dropout", "dropout_p")


def is_random(node: fx.Node) -> bool:
    """Whether a node may give another value the next time: an operator that draws, unless its switch is off or its rate is zero.

    A rate is what is called so, or the ``p`` of an operator that has a switch; elsewhere ``p`` is the chance of a draw. A switch that is
    neither on nor off (``train=None``) counts as on.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = arguments(node.target._schema, node.args, node.kwargs)  # type: ignore[union-attr]
    switches = [given[name] for name in _SWITCHES if name in given]
    rates = [given[name] for name in (*_RATES, *(("p",) if switches else ())) if name in given]
    return not (any(value is False for value in switches) or any(value == 0 for value in rates))


def arguments(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by name, defaults included."""
    known = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    return known | dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs)


class DropoutReturnsItsInput(TorchFunctionMode):
    """Dropout that is off gives the tensor that it takes, as eager mode does; torch.export gives a copy, which shares no memory."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, unless it is dropout that is off."""
        kwargs = kwargs or {}
        if func in _DROPOUTS or func in _OPERATORS:
            given = _bound(func, args, kwargs)
            if not given["training"] or given["p"] == 0:
                return given["input"]
        return func(*args, **kwargs)


def _bound(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if func in _OPERATORS:
        given = dict(zip(("input", "p", "train"), args, strict=False)) | dict(kwargs)
        return given | {"training": given["train"]}
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


@cache
def _signature(func: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(func)
