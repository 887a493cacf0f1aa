"""Storage layouts of a value inside a region.

A sample (one image) is stored per region value; the batch axis is the executor's loop. With C channels on an H x W map:

- ``halo``: zero-padded channel-major rows. Pixel (c, h, w) lives at ``c * stride + front + h * pitch + w``. One run of ``pad`` zero
  columns serves as right pad of a row and left pad of the next, so any same-padded stencil is a pure shift of the flat index
  ``p = h * pitch + w``. Every kernel that writes ``halo`` keeps pad positions at zero; margins are zeroed once and never written.
- ``tiled``: ``[tiles][C][tile]`` over the same flat index p; pad positions hold anything.
- ``single``: C contiguous elements (a map of one pixel, or a [N, C] tensor).
- ``nchw``: the caller's own contiguous tensor; only at the edges of a region.

T tokens of F features [T, F] are a map of F channels on 1 x T pixels, always ``tiled``; ``token_major`` is the caller's own tensor of
tokens, features contiguous, at the edges of a region only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparsec.run.affine import Affine, Count
from sparsec.run.dtypes import dtype_of

Layout = Literal["halo", "tiled", "single", "nchw", "token_major"]
LAYOUTS: tuple[Layout, ...] = ("halo", "tiled", "single", "nchw", "token_major")


@dataclass(frozen=True)
class Layouts:
    """How the kernels of a spec read their first operand, and write their result, where that is a map of several pixels.

    reads, writes: the layouts that they have kernels for. prefers: the one that is read faster than others. planes: where it is above 1,
    they read parity planes of this step, all or the first of each channel (``first_plane``).
    """

    reads: tuple[Layout, ...] = ("halo", "tiled")
    writes: tuple[Layout, ...] = ("halo", "tiled")
    prefers: Layout | None = None
    planes: int = 1
    first_plane: bool = False


#: Elements between alignments of a channel row: one line of float32.
LINE = 16
#: Bytes between alignments of values in memory.
LINE_BYTES = 64


def ceil_to(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Geometry:
    """The flat index space of an H x W map whose consumers need ``pad`` zero columns and rows around it.

    ``tile`` is the widest tile (in elements) a kernel may write at once: the row of a channel is long enough for the last tile.
    ``follows``: what the number of tokens of a row follows, a run-time size plus so many; ``width`` is then its largest.
    """

    height: int
    width: int
    pad: int
    tile: int = 64
    follows: Affine | None = None

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
    def count(self) -> int:
        """Pixels that hold values: a Count where they follow a run-time size."""
        return Count(self.follows, self.width - self.follows.plus) if self.follows else self.pixels

    @property
    def tiles(self) -> int:
        """Number of tiles of ``tile`` elements that cover the flat index space: a Count where that follows a run-time size."""
        return self.count.ceil_div(self.tile) if isinstance(self.count, Count) else -(-self.pixels // self.tile)

    @property
    def stride(self) -> int:
        """Elements from one channel to the next."""
        back = max(self.pixels + self.pad * self.pitch + self.pad, self.tiles * self.tile)
        return ceil_to(self.front + back, LINE)

    def key(self) -> dict[str, Any]:
        """Plain-data form."""
        plain = {"height": self.height, "width": self.width, "pad": self.pad, "tile": self.tile}
        return plain | ({"symbol": self.follows.symbol, "plus": self.follows.plus} if self.follows else {})

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> Geometry:
        """The inverse of ``key``."""
        plain = dict(data)
        symbol, plus = plain.pop("symbol", ""), plain.pop("plus", 0)
        return cls(**plain, follows=Affine(symbol, plus) if symbol else None)


@dataclass(frozen=True)
class Storage:
    """How one value of a region is stored: layout, channels and, for maps, the flat index space.

    ``halo``, ``tiled`` and ``token_major`` need a geometry; ``single`` has none; ``nchw`` is a caller's tensor of ``channels * height *
    width`` elements. A number per token [T] is a ``token_major`` value of 0 channels.
    """

    layout: Layout
    channels: int
    geometry: Geometry | None = None
    dtype: str = "float32"

    def described(self) -> dict[str, Any]:
        """Plain-data form."""
        plain = {"layout": self.layout, "channels": self.channels, "geometry": None if self.geometry is None else self.geometry.key()}
        return plain if self.dtype == "float32" else {**plain, "dtype": self.dtype}

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> Storage:
        """The inverse of ``described``."""
        geometry = None if data["geometry"] is None else Geometry.restored(data["geometry"])
        return cls(data["layout"], data["channels"], geometry, data.get("dtype", "float32"))

    @property
    def is_map(self) -> bool:
        """Whether the value lives in a flat index space."""
        return self.layout in ("halo", "tiled")

    @property
    def index_space(self) -> Geometry:
        """The geometry of a map."""
        if self.geometry is None:
            raise ValueError(f"a {self.layout} value has no geometry")
        return self.geometry

    @property
    def elements(self) -> int:
        """Elements of one sample."""
        if self.layout == "halo":
            return self.channels * self.index_space.stride
        if self.layout == "tiled":
            return self.index_space.tiles * self.channels * self.index_space.tile
        return self.channels if self.geometry is None else max(self.channels, 1) * self.geometry.height * self.geometry.width

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return self.elements * dtype_of(self.dtype).nbytes

    @property
    def origin(self) -> int:
        """Elements from the start of the storage to pixel (0, 0) of channel 0."""
        return self.index_space.front if self.layout == "halo" else 0

    @property
    def tile_step(self) -> int:
        """Elements from one tile of a channel to the next."""
        return self.index_space.tile if self.layout == "halo" else self.channels * self.index_space.tile

    @property
    def channel_step(self) -> int:
        """Elements from one channel to the next within a tile."""
        return self.index_space.stride if self.layout == "halo" else self.index_space.tile

    @property
    def is_dense(self) -> bool:
        """Whether element i of the value in row-major order lies i elements from the start."""
        return not self.is_map

    @property
    def follows(self) -> bool:
        """Whether the number of tokens is known at run time only; all sizes are then the largest."""
        return self.geometry is not None and self.geometry.follows is not None

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether one sample of ``shape`` ([C], [C, H, W] or, of tokens, [T, F]) is what is stored."""
        if self.is_dense:
            return math.prod(shape) == self.elements
        height, width = self.index_space.height, self.index_space.width
        return tuple(shape) == (self.channels, height, width) or (height == 1 and tuple(shape) == (width, self.channels))

    def addresses(self, shape: Sequence[int]) -> np.ndarray:
        """Where each element of one sample of ``shape`` lies: int64 elements from the start of the storage, row-major order of ``shape``.

        ValueError unless the storage holds such a sample.
        """
        if not self.holds(shape):
            raise ValueError(f"a {self.layout} value of {self.channels} channels does not hold {tuple(shape)}")
        if self.is_dense:
            return np.arange(self.elements)
        space, pixel = self.index_space, np.arange(self.index_space.height * self.index_space.width)
        at = pixel // space.width * space.pitch + pixel % space.width
        place = self.origin + at // space.tile * self.tile_step + at % space.tile
        channels = np.arange(self.channels) * self.channel_step
        return (channels[:, None] + place if len(shape) == 3 else place[:, None] + channels).reshape(-1)


def dense(shape: Sequence[int], dtype: str = "float32") -> Storage:
    """The storage of one sample [C], [C, H, W] or [T, F] in row-major order."""
    if len(shape) == 1:
        return Storage("single", shape[0], dtype=dtype)
    if len(shape) == 2:
        return Storage("token_major", shape[1], Geometry(1, shape[0], 0), dtype)
    return Storage("nchw", shape[0], Geometry(shape[1], shape[2], 0), dtype)
