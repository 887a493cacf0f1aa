"""Numpy values in and out of storages: how a candidate gets its inputs and how its result is read."""

from __future__ import annotations

import numpy as np

from sparsec.lower.layouts import LINE, Layouts, Storage, ceil_to


def storage_elements(storage: Storage) -> int:
    """Elements from one sample's storage to the next, whole lines."""
    return ceil_to(storage.elements, LINE)


def to_storage(x: np.ndarray, storage: Storage) -> np.ndarray:
    """[C, H, W] or [C] -> one sample's storage as a row of elements.

    Pads of ``halo`` are zero. Pads of ``tiled`` are NaN: a kernel that lets one reach a pixel gives a wrong result.
    """
    out = np.zeros(storage_elements(storage), storage.dtype)
    body = out[: storage.elements]
    if storage.layout == "halo":
        pixels(body, storage)[...] = x
    elif storage.layout == "tiled":
        space = storage.index_space
        rows = np.full((storage.channels, space.tiles * space.tile), np.nan, storage.dtype)
        rows[:, : space.pixels].reshape(-1, space.height, space.pitch)[:, :, : space.width] = x
        body[:] = rows.reshape(storage.channels, space.tiles, space.tile).swapaxes(0, 1).reshape(-1)
    else:
        body[:] = x.reshape(-1)
    return out


def pixels(body: np.ndarray, storage: Storage) -> np.ndarray:
    """The [C, H, W] pixels of a ``halo`` storage, as a view."""
    return rows(body, storage)[:, :, : storage.index_space.width]


def rows(body: np.ndarray, storage: Storage) -> np.ndarray:
    """The [C, H, pitch] pixels and pad columns of a ``halo`` storage, as a view."""
    space = storage.index_space
    channels = body.reshape(storage.channels, space.stride)
    return channels[:, space.front : space.front + space.pixels].reshape(storage.channels, space.height, space.pitch)


def from_storage(stored: np.ndarray, storage: Storage) -> np.ndarray:
    """One sample's storage -> [C, H, W], or [C] for a vector."""
    body = stored[: storage.elements]
    if storage.layout == "halo":
        return pixels(body, storage)
    if storage.layout == "tiled":
        space = storage.index_space
        flat = body.reshape(space.tiles, storage.channels, space.tile).swapaxes(0, 1).reshape(storage.channels, -1)
        return flat[:, : space.pixels].reshape(-1, space.height, space.pitch)[:, :, : space.width]
    return body


def read_by(layouts: Layouts, x: np.ndarray) -> np.ndarray:
    """The value that a kernel with these layouts reads as its first source: itself, or its parity planes."""
    step = layouts.planes
    planes = parity_planes(x, step) if step > 1 else x
    return planes[:: step * step] if layouts.first_plane else planes


def parity_planes(x: np.ndarray, step: int) -> np.ndarray:
    """[C, H, W] -> [C * step * step, ceil(H / step), ceil(W / step)]: plane (c * step + a) * step + b holds x[c, a::step, b::step]."""
    channels, height, width = x.shape
    high, wide = -(-height // step), -(-width // step)
    padded = np.zeros((channels, high * step, wide * step), x.dtype)
    padded[:, :height, :width] = x
    split = padded.reshape(channels, high, step, wide, step).transpose(0, 2, 4, 1, 3)
    return split.reshape(channels * step * step, high, wide)
