"""What operators need so that trailing tokens, which are padding, may be left out: the mask that hides them, or the reason why not."""

from torch import fx

from sparsec.ir.arguments import arguments
from sparsec.ir.miss import Miss
from sparsec.tokens import ops as token_ops

#: exp of a score this far below another is 0 in float32.
HIDDEN = -1e4


def by_key_bias(node: fx.Node) -> fx.Node | Miss:
    """Of attention: the mask behind its bias of keys."""
    bias = arguments(node)["key_bias"]
    if not isinstance(bias, fx.Node) or bias.target is not token_ops.key_bias or arguments(bias)["off"] > HIDDEN:
        return Miss("has no mask that hides padding")
    return bias.args[0]  # type: ignore[return-value]


def unless_first(node: fx.Node) -> Miss | None:
    """Of a token that is selected: only the first is none of padding's."""
    index = arguments(node)["index"]
    return Miss(f"reads token {index}, which may be padding") if index > 0 else None


def averages(node: fx.Node) -> Miss:
    """Of a mean over tokens."""
    return Miss("averages over all tokens, padding included")


def chooses(node: fx.Node) -> Miss:
    """Of a choice of tokens."""
    return Miss("chooses among all tokens, padding included")
