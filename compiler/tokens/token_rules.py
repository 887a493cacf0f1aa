"""What operators do to tokens [N, T, F]: whether they treat them one by one, and what has to lose tokens where they do.

The rules that records of operators name; `sparsec.tokens.token_axis` follows tokens by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx

from sparsec.ir.arguments import arguments, is_identity
from sparsec.ir.forms import is_value
from sparsec.ir.miss import Miss
from sparsec.tokens import ops as token_ops

aten = torch.ops.aten

Kind = Literal["tokens", "keys", "pairs"]


@dataclass(frozen=True)
class Aligned:
    """An operand of `node` that lies along the tokens without carrying them: [N or 1,T,F] or [T,F] "tokens", [N,T] "keys", or "pairs"."""

    node: fx.Node
    name: str
    operand: fx.Node
    kind: Kind


@dataclass
class Followed:
    """What becomes of the tokens of `start`.

    `carriers`: values with these tokens, in order, `start` first. `aligned`: operands that must lose the same tokens. `reads`: positions
    that are read on their own, each with a reader. `means`: averages over the tokens. `returned`: carriers that the graph returns.
    """

    start: fx.Node
    carriers: list[fx.Node] = field(default_factory=list)
    aligned: list[Aligned] = field(default_factory=list)
    reads: dict[int, fx.Node] = field(default_factory=dict)
    means: list[fx.Node] = field(default_factory=list)
    returned: list[fx.Node] = field(default_factory=list)

    @property
    def attentions(self) -> list[fx.Node]:
        """The attention of these tokens among themselves, in order."""
        return [node for node in self.carriers if node.target is token_ops.attention]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return token_count(self.start)


def is_tokens(node: object) -> bool:
    """Whether a node stands for floating-point tokens [N, T, F] with a constant number of tokens."""
    if not isinstance(node, fx.Node) or not is_value(node):
        return False
    value = node.meta["val"]
    return value.dim() == 3 and value.is_floating_point() and isinstance(value.shape[1], int)


def token_count(node: fx.Node) -> int:
    """T of a value [N, T, F]."""
    return node.meta["val"].shape[1]


@dataclass(frozen=True, eq=False)
class ByToken:
    """How an operator treats tokens.

    step: (node, values that carry the tokens, what is found so far) -> whether the value of the node carries them on, or why they cannot be
    followed through it. sources: the operands whose tokens the value of a node has, one by one.
    """

    step: Callable[[fx.Node, set[fx.Node], Followed], bool | Miss]
    sources: Callable[[fx.Node], list[fx.Node]]


def _none(node: fx.Node) -> list[fx.Node]:
    return []


def _alone(reason: Callable[[fx.Node], str]) -> ByToken:
    """An operator of one operand of tokens, which treats them one by one where there is no reason why it does not."""

    def step(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | Miss:
        refused = _parameters(node, carried) or reason(node)
        return Miss(refused) if refused else True

    def sources(node: fx.Node) -> list[fx.Node]:
        operands = [each for each in node.all_input_nodes if is_tokens(each)]
        treats = len(operands) == 1 and not (_parameters(node, set(operands)) or reason(node))
        return operands if treats else []

    return ByToken(step, sources)


def _parameters(node: fx.Node, carried: set[fx.Node]) -> str:
    """Whether an operator of one tokens operand has tokens elsewhere."""
    named = arguments(node) if node.op == "call_function" else {}
    used = any(value in carried for value in list(named.values())[1:] if isinstance(value, fx.Node))
    return f"{_name(node)} uses tokens as parameters" if used else ""


def _unknown(node: fx.Node) -> str:
    return f"{_name(node)} is not known to treat tokens one by one"


def _over_more(node: fx.Node) -> str:
    return "" if len(arguments(node)["normalized_shape"]) == 1 else "the normalisation is over more than the features of a token"


def _attention(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | Miss:
    named = arguments(node)
    if not all(named[name] in carried for name in ("query", "key", "value")):
        return Miss("queries, keys and values are not of the same tokens")
    for name, kind in (("key_bias", "keys"), ("pair_bias", "pairs")):
        if named[name] in carried:
            return Miss(f"{name} is made of tokens")
        if named[name] is not None:
            found.aligned.append(Aligned(node, name, named[name], kind))  # type: ignore[arg-type]
    return True


def _elementwise(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | Miss:
    named = arguments(node)
    rank = node.meta["val"].dim()
    for name, operand in list(named.items())[:2]:
        if not isinstance(operand, fx.Node) or operand in carried:
            continue
        shape = operand.meta["val"].shape
        if len(shape) > 3 or rank != 3:
            return Miss(f"{operand.name} gives the tokens a further dimension")
        if len(shape) >= 2 and shape[-2] != 1:
            found.aligned.append(Aligned(node, name, operand, "tokens"))
    return True


def _selection(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | Miss:
    named, tokens = arguments(node), token_count(found.start)
    if named["dim"] % 3 != 1:
        return Miss(f"{_name(node)} takes a part of the features or of the batch")
    if node.target is aten.select.int:
        positions = [named["index"] % tokens]
    else:
        positions = list(range(tokens)[slice(named["start"], named["end"], named["step"])])
    found.reads.update(dict.fromkeys(positions, node))
    return False


def _mean(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | Miss:
    if [dim % 3 for dim in arguments(node)["dim"] or ()] != [1]:
        return Miss("the mean is not over the tokens alone")
    found.means.append(node)
    return False


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", str(node.target))


def _query(node: fx.Node) -> list[fx.Node]:
    return [arguments(node)["query"]]


def _as_many(node: fx.Node) -> list[fx.Node]:
    operands: list[Any] = [each for each in node.args[:2] if is_tokens(each)]
    return [each for each in operands if token_count(each) == node.meta["val"].shape[1]]


EACH = _alone(lambda node: "")
FEATURES = _alone(_over_more)
IF_INACTIVE = _alone(lambda node: "" if is_identity(node) else _unknown(node))
#: Of an operator whose record says nothing of tokens, and of one without a record.
UNKNOWN = ByToken(_alone(_unknown).step, _none)
ATTENTION = ByToken(_attention, _query)
ELEMENTWISE = ByToken(_elementwise, _as_many)
SELECTION = ByToken(_selection, _none)
MEAN = ByToken(_mean, _none)
