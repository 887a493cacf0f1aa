"""What a compilation found and chose, layer by layer: plain data that travels as JSON and prints as tables.

Needs neither torch nor TVM, so that an artifact can explain itself where it runs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH = 120
#: Names of layers up to this length are never broken into two lines.
UNBROKEN = 32
DENSE = "dense"


@dataclass(frozen=True)
class Layer:
    """One layer of the compiled network.

    Attributes:
        node: its name in the graph.
        op: "conv2d", "linear", ...
        shape: of the weight, or of the output where there is none.
        density: share of nonzero weights, None where the layer has none.
        pattern: "unstructured", "1x4 blocks", "dense", ...
        kernel: symbol of the kernel that won.
        kind: its family; "dense" for a layer that has weights and stayed dense.
        bound_us: predicted lower bound of the time in microseconds, None if unknown.
        time_us: measured time in microseconds, None if unknown.
        reason: why this kernel, above all why it stayed dense.
        flip_density: the density below which a sparse kernel would win, None if none would.
        source: the user's line or module path.
    """

    node: str
    op: str
    shape: tuple[int, ...] = ()
    density: float | None = None
    pattern: str = ""
    kernel: str = ""
    kind: str = ""
    bound_us: float | None = None
    time_us: float | None = None
    reason: str = ""
    flip_density: float | None = None
    source: str = ""

    @property
    def stayed_dense(self) -> bool:
        """Whether it has weights and runs on a dense kernel."""
        return self.kind == DENSE and self.density is not None


@dataclass(frozen=True)
class Explanation:
    """All layers of one compilation, and what did not happen.

    Attributes:
        layers: in the order in which they run.
        misses: (pass, node, reason) of refused rewrites.
        uncovered: (node, reason) of what no region took and torch runs.
        notes: whatever else the user should know.
    """

    layers: tuple[Layer, ...] = ()
    misses: tuple[tuple[str, str, str], ...] = ()
    uncovered: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    def described(self) -> dict[str, Any]:
        """JSON values; ``restored`` is the inverse."""
        return asdict(self)

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> Explanation:
        """Read what ``described`` gave. KeyError, TypeError or ValueError if it is malformed."""
        return cls(
            layers=tuple(Layer(**{**row, "shape": tuple(row["shape"])}) for row in data["layers"]),
            misses=tuple((str(name), str(node), str(reason)) for name, node, reason in data["misses"]),
            uncovered=tuple((str(node), str(reason)) for node, reason in data["uncovered"]),
            notes=tuple(map(str, data["notes"])),
        )

    def to_json(self) -> str:
        """One JSON object; ``from_json`` is its inverse."""
        return json.dumps(self.described(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Read what ``to_json`` wrote."""
        return cls.restored(json.loads(text))

    def timed(self, seconds: Mapping[str, float]) -> Explanation:
        """The same with measured times; ``seconds`` by node name."""
        layers = (replace(x, time_us=seconds[x.node] * 1e6) if x.node in seconds else x for x in self.layers)
        return replace(self, layers=tuple(layers))

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts = [
            self._layers(),
            _listing("Stayed dense", ("layer", "why", "sparse wins below"), self._dense_rows()),
            _listing("Run by torch", ("node", "why"), self.uncovered),
            _listing("Not rewritten", ("pass", "nodes", "why"), _gathered(self.misses)),
        ]
        return Group(*(part for part in parts if part is not None), *(Text(f"Note: {note}") for note in self.notes))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=WIDTH, color_system=None, force_terminal=False).print(self, highlight=False)
        return text.getvalue().rstrip()

    def _layers(self) -> Table:
        table = _table(self.summary())
        table.add_column("layer", overflow="fold", no_wrap=all(len(x.node) <= UNBROKEN for x in self.layers))
        for heading in ("op", "shape", "found", "kernel"):
            table.add_column(heading, overflow="fold")
        for heading in ("bound µs", "time µs", "of bound"):
            table.add_column(heading, justify="right", no_wrap=True)
        for x in self.layers:
            table.add_row(*_cells(x), style="dim" if x.stayed_dense else "")
        return table

    def summary(self) -> str:
        """One line: how many layers are sparse, dense, left to torch; the sum of measured times."""
        weighted = [x for x in self.layers if x.density is not None]
        dense = sum(x.stayed_dense for x in weighted)
        times = [x.time_us for x in self.layers if x.time_us is not None]
        total = f"; {sum(times) / 1e3:.3f} ms measured" if times else ""
        outside = f"; {len(self.uncovered)} nodes run by torch" if self.uncovered else ""
        return f"{len(self.layers)} layers: {len(weighted) - dense} sparse, {dense} stayed dense{outside}{total}"

    def _dense_rows(self) -> list[tuple[str, str, str]]:
        return [
            (x.node, x.reason or "no reason recorded", "never" if x.flip_density is None else f"{x.flip_density:.0%} nonzero")
            for x in self.layers
            if x.stayed_dense
        ]


def _cells(x: Layer) -> tuple[Any, ...]:
    from rich.text import Text

    found = "" if x.density is None else f"{x.density:.1%} {x.pattern}".strip()
    share = f"{x.bound_us / x.time_us:.0%}" if x.bound_us is not None and x.time_us else "–"
    texts = (x.node, x.op, "×".join(map(str, x.shape)), found, x.kernel)
    return (*map(Text, texts), _microseconds(x.bound_us), _microseconds(x.time_us), share)


def _microseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _gathered(misses: tuple[tuple[str, str, str], ...]) -> list[tuple[str, str, str]]:
    """One row per pass and reason; a node's name where it is the only one, else how many."""
    nodes: dict[tuple[str, str], list[str]] = {}
    for name, node, reason in misses:
        nodes.setdefault((name, reason), []).append(node)
    return [(name, rows[0] if len(rows) == 1 else f"{len(rows)} ({rows[0]}, …)", reason) for (name, reason), rows in nodes.items()]


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _listing(title: str, headings: tuple[str, ...], rows: Any) -> Table | None:
    from rich.text import Text

    if not rows:
        return None
    table = _table(f"\n{title}")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
