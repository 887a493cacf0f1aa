"""Calls that move a value from one storage to another, and into parity planes."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from sparsec.backends.base import Arguments, Machine, Source
from sparsec.backends.cpu import convert, permute, token_moves
from sparsec.backends.cpu.geometry import mask_of
from sparsec.backends.plan import Buffer, Call, Move
from sparsec.lower.layouts import Storage
from sparsec.run.affine import scaled


def covers(have: Storage, want: Storage, shape: tuple[int, ...], dtypes: Container[str]) -> bool:
    """Whether ``copy`` moves a value of ``shape`` from one storage to the other; ``dtypes``: that kernels compute in."""
    if have.dtype != want.dtype or have.dtype not in dtypes or not (have.holds(shape) and want.holds(shape)):
        return False
    if have.is_map and want.is_map:
        return have.layout != want.layout and have.geometry == want.geometry and len(shape) == 3
    layout = have.layout if have.is_map else want.layout
    return not (have.is_map or want.is_map) or len(shape) == {"halo": 3, "tiled": 2}[layout]


def call(move: Move, machine: Machine) -> Call:
    """The call that does ``move``."""
    if move.places is not None:
        return rearrange(move.source, move.target, *move.places, machine)
    return planes(move.source, move.target, move.step, machine) if move.step else copy(move.source, move.target, machine)


def copy(source: Buffer, target: Buffer, machine: Machine) -> Call:
    """Move a value between storages that ``covers`` allows."""
    have, want, lanes = source.storage, target.storage, machine.vector.lanes
    if have.is_map and want.is_map:
        space = want.index_space
        steps = {"x_tile": have.tile_step, "x_channel": have.channel_step, "y_tile": want.tile_step, "y_channel": want.channel_step}
        kernel = convert.retile(machine.vector, space.tile // lanes, masked=want.layout == "halo")
        scalars = {"channels": want.channels, **steps}
        return _move(kernel, source, target, scalars, space.tiles, {"mask": mask_of(space)})
    if have.layout == "tiled":
        scalars = {"count": have.index_space.count, "features": have.channels}
        return _move(
            token_moves.tiled_to_rows(machine.vector, have.index_space.tile // lanes), source, target, scalars, have.index_space.tiles
        )
    if want.layout == "tiled":
        scalars = {"count": want.index_space.count, "features": want.channels}
        return _move(
            token_moves.rows_to_tiled(machine.vector, want.index_space.tile // lanes), source, target, scalars, want.index_space.tiles
        )
    kernel = convert.copy_rows(machine.vector)
    if want.layout == "halo":
        return _move(kernel, source, target, convert.nchw_to_halo(want.index_space), want.channels)
    if have.layout == "halo":
        return _move(kernel, source, target, convert.halo_to_nchw(have.index_space), have.channels)
    return _move(kernel, source, target, {**convert.copy_vector(0), "width": _length(have, want)}, 1)


def _length(*storages: Storage) -> int:
    """Elements of a value in row-major order: a Count where they follow a run-time size."""
    free = next((s for s in storages if s.follows), storages[0])
    return scaled(free.index_space.count, max(free.channels, 1)) if free.follows else free.elements


def rearrange(source: Buffer, target: Buffer, have: np.ndarray, want: np.ndarray, machine: Machine) -> Call:
    """Move each element from address ``have[i]`` of the source to address ``want[i]`` of the target; what else is written is 0."""
    place, scalars, units = permute.table_of(source.storage, target.storage, have, want)
    return _move(permute.permute(machine.vector), source, target, scalars, units, {"place": place})


def planes(source: Buffer, target: Buffer, step: int, machine: Machine) -> Call:
    """Space-to-depth of a contiguous or halo map into parity planes with halos, all or the first of each channel."""
    have, space = source.storage, target.storage.index_space
    only_first = target.storage.channels == have.channels
    scalars = {
        "height": have.index_space.height,
        "width": have.index_space.width,
        "x_channel": have.index_space.stride if have.layout == "halo" else have.index_space.height * have.index_space.width,
        "x_pitch": have.index_space.pitch if have.layout == "halo" else have.index_space.width,
        "y_height": space.height,
        "y_pitch": space.pitch,
        "y_channel": space.stride,
    }
    kernel = convert.to_planes(machine.vector, step, only_first)
    return _move(kernel, source, target, scalars, have.channels * (1 if only_first else step))


def _move(
    kernel: Source, source: Buffer, target: Buffer, scalars: Arguments, units: int, constants: dict[str, np.ndarray] | None = None
) -> Call:
    name = f"{source.name}->{target.storage.layout}"
    moved = source.storage.nbytes + target.storage.nbytes
    return Call(kernel, name, "convert", {"x": source, "y": target}, ("y",), constants or {}, scalars, units, 0, moved)
