"""Whether kernels compute a call that a pass thinks of making."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from sparsec.ir.miss import Miss
from sparsec.lower.describe import spec_of
from sparsec.lower.spec import KernelSpec

Offers = Callable[[KernelSpec], Miss | None]


@dataclass(frozen=True)
class Call:
    """A call that is in no graph, with a result like that of the node ``like``."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    like: fx.Node

    @classmethod
    def of(cls, node: fx.Node) -> Call:
        """The call that a node makes."""
        return cls(node.target, node.args, node.kwargs, node)

    def refusal(self, offers: Offers) -> str:
        """Why no kernel computes it, "" if one does."""
        node = fx.Graph().call_function(self.target, self.args, self.kwargs)
        node.meta["val"] = self.like.meta["val"]
        found = spec_of(node)
        # It must not stay among the users of its operands.
        node.args, node.kwargs = (), {}
        refused = found if isinstance(found, Miss) else offers(found)
        return "" if refused is None else refused.reason


def loss(before: Sequence[Call], after: Call, offers: Offers) -> str:
    """Why no kernel computes ``after`` where kernels compute all of ``before``; "" elsewhere."""
    reason = after.refusal(offers)
    return reason if reason and not any(call.refusal(offers) for call in before) else ""
