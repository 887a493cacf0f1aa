"""Storage layouts of a value inside a region.

A sample (one image) is stored per region value; the batch axis is the executor's loop. With C channels on an H x W map:

- ``flat``: zero-padded channel-major rows. Pixel (c, h, w) lives at ``c * stride + front + h * pitch + w``. One run of ``pad`` zero
  columns serves as right pad of a row and left pad of the next, so any same-padded stencil is a pure shift of the flat index
  ``p = h * pitch + w``. Every kernel that writes ``flat`` keeps pad positions at zero; margins are zeroed once and never written.
- ``packed``: ``[tiles][C][tile]`` over the same flat index p; pad positions hold anything.
- ``vector``: C contiguous elements (a map of one pixel, or a [N, C] tensor).
- ``nchw``: the caller's own contiguous tensor; only at the edges of a region.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Layout = Literal["flat", "packed", "vector", "nchw"]
LAYOUTS: tuple[Layout, ...] = ("flat", "packed", "vector", "nchw")

#: Elements between alignments of a channel row: one 64-byte line of float32.
LINE = 16


def ceil_to(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Geometry:
    """The flat index space of an H x W map whose consumers need ``pad`` zero columns and rows around it.

    ``tile`` is the widest tile (in elements) a kernel may write at once: the row of a channel is long enough for the last tile.
    """

    height: int
    width: int
    pad: int
    tile: int = 64

    @property
    def pitch(self) -> int:
        """Elements from one row to the next."""
        return self.width + self.pad

    @property
    def front(self) -> int:
        """Zero elements before pixel (0, 0); keeps pixel (0, 0) on a line boundary."""
        return ceil_to(self.pad * self.pitch + self.pad, LINE)

    @property
    def pixels(self) -> int:
        """Length of the flat index space, pad columns included."""
        return self.height * self.pitch

    @property
    def tiles(self) -> int:
        """Number of tiles of ``tile`` elements that cover the flat index space."""
        return -(-self.pixels // self.tile)

    @property
    def stride(self) -> int:
        """Elements from one channel to the next."""
        back = max(self.pixels + self.pad * self.pitch + self.pad, self.tiles * self.tile)
        return ceil_to(self.front + back, LINE)

    def key(self) -> dict[str, Any]:
        """Plain-data form."""
        return {"height": self.height, "width": self.width, "pad": self.pad, "tile": self.tile}
