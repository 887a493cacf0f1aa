"""Constants that follow from a flat index space."""

from __future__ import annotations

import functools

import numpy as np

from sparsec.lower.layouts import Geometry, Storage


@functools.lru_cache(maxsize=256)
def mask_of(geometry: Geometry) -> np.ndarray:
    """float32 [tiles * tile]: 1 on pixels, 0 on pad columns and on the tail of the last tile."""
    p = np.arange(geometry.tiles * geometry.tile)
    return ((p < geometry.pixels) & (p % geometry.pitch < geometry.width)).astype(np.float32)


def tile_of(storage: Storage) -> int:
    """Pixels per tile of a map."""
    return storage.index_space.tile
