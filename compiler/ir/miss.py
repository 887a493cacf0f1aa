"""A refusal as a value: one for passes, rules of operators and backends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True)
class Miss:
    """Why something is not done, and where: a node, its name in a story that outlives its graph, None where whoever asks knows.

    ``source``: the user's line, in a story.
    """

    reason: str
    where: fx.Node | str | None = None
    source: str = ""

    def at(self, node: fx.Node) -> Miss:
        """The same refusal, of this node."""
        return replace(self, where=node)
