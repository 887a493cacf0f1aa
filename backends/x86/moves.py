"""Calls that move a value from one storage to another, and into parity planes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsec.backends.base import Arguments, Machine, Source
from sparsec.backends.plan import Buffer, Call
from sparsec.backends.x86 import convert
from sparsec.backends.x86.geometry import mask_of
from sparsec.backends.x86.tokens import token_copy


def copy(source: Buffer, target: Buffer, machine: Machine) -> Call:
    """Move a value between storages."""
    have, want, lanes = source.storage, target.storage, machine.lanes
    if "rows" in (have.layout, want.layout):
        return token_copy(source, target, machine)
    if have.is_map and want.is_map:
        space = want.space
        steps = {"x_tile": have.tile_step, "x_row": have.row_step, "y_tile": want.tile_step, "y_row": want.row_step}
        kernel = convert.retile(lanes, space.tile // lanes, masked=want.layout == "flat")
        scalars = {"channels": want.channels, **steps}
        return _move(kernel, source, target, scalars, space.tiles, {"mask": mask_of(space)})
    kernel = convert.copy_rows(lanes)
    if want.layout == "flat":
        return _move(kernel, source, target, convert.nchw_to_flat(want.space), want.channels)
    if have.layout == "flat":
        return _move(kernel, source, target, convert.flat_to_nchw(have.space), have.channels)
    return _move(kernel, source, target, convert.copy_vector(want.elements), 1)


def planes(source: Buffer, target: Buffer, step: int, machine: Machine) -> Call:
    """Space-to-depth of a contiguous or flat map into flat parity planes, all or the first of each channel."""
    have, space = source.storage, target.storage.space
    only_first = target.storage.channels == have.channels
    scalars = {
        "height": have.space.height,
        "width": have.space.width,
        "x_row": have.space.stride if have.layout == "flat" else have.space.height * have.space.width,
        "x_pitch": have.space.pitch if have.layout == "flat" else have.space.width,
        "y_height": space.height,
        "y_pitch": space.pitch,
        "y_row": space.stride,
    }
    kernel = convert.to_planes(machine.lanes, step, only_first)
    return _move(kernel, source, target, scalars, have.channels * (1 if only_first else step))


def _move(
    kernel: Source, source: Buffer, target: Buffer, scalars: Arguments, units: int, constants: Mapping[str, np.ndarray] | None = None
) -> Call:
    name = f"{source.name}->{target.storage.layout}"
    moved = 4 * (source.storage.elements + target.storage.elements)
    return Call(kernel, name, "convert", {"x": source, "y": target}, ("y",), constants or {}, scalars, units, 0, moved)
