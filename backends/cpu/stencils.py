"""Depthwise convolutions, alone or feeding a 1x1 convolution strip by strip."""

from __future__ import annotations

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu.bounds import clamp_bounds, kernel_activation
from sparsec.backends.cpu.depthwise import depthwise, pack_depthwise
from sparsec.backends.cpu.depthwise_strided import depthwise_strided, scratch_elements
from sparsec.backends.cpu.geometry import mask_of
from sparsec.backends.cpu.partition import one_run, units_of
from sparsec.backends.cpu.products import panel_call, panel_kernel
from sparsec.backends.plan import Buffer, Call, Group, Task
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec, Schedule

SIZES = (3, 5, 7)


def is_depthwise(spec: KernelSpec) -> bool:
    """Whether ``spec`` is a convolution of a map with one filter per channel."""
    weight = spec.weights[0] if spec.weights else None
    per_channel = weight is not None and weight[1] == 1 and spec["groups"] == spec.inputs[0][0] == weight[0] != 1
    return per_channel and spec.output[1:] != (1, 1)


def depthwise_breach(spec: KernelSpec) -> str:
    """What the shapes of the (first) convolution of ``spec`` lack for the depthwise kernels."""
    weight = spec.weights[0]
    if weight is None or len(spec.inputs[0]) != 3:
        return "a depthwise convolution without a map"
    kernel, padding = weight[2:], spec["padding"]
    if kernel[0] != kernel[1] or kernel[0] not in SIZES:
        return f"depthwise {kernel[0]}x{kernel[1]}; kernels exist for square {', '.join(map(str, SIZES))}"
    if tuple(padding) != (kernel[0] // 2, kernel[0] // 2):
        return f"depthwise with padding {padding}; kernels exist for same padding"
    return ""


def pair_breach(spec: KernelSpec) -> str:
    """What the shapes of a fused pair lack for its kernels."""
    return "a fused pair of convolutions on a single pixel" if spec.output[1:] == (1, 1) else depthwise_breach(spec)


def depthwise_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """A depthwise convolution of its own."""
    return [Group((depthwise_call(task, machine, task.target, task.residual),))]


def pair_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """A depthwise convolution and the 1x1 convolution that reads it, strip by strip; a residual belongs to the latter."""
    space, channels = task.target.storage.index_space, task.spec.inputs[0][0]
    strip = strip_tiles(channels, space, machine)
    middle = strip_buffer(task, channels, space, strip)
    first = depthwise_call(task, machine, middle, None, "dw_", strip)
    return [Group((first, panel_call(task, schedule, machine, middle)), strip)]


def pair_kernels(task: Task, schedule: Schedule, machine: Machine) -> tuple[Source, ...]:
    """The kernels of ``pair_groups``."""
    masked = False  # The strip between them is tiled.
    return depthwise_kernel(task, machine, masked, residual=False, prefix="dw_"), panel_kernel(task, schedule, machine)


def depthwise_kernel(task: Task, machine: Machine, masked: bool, residual: bool, prefix: str = "") -> Source:
    """The kernel of the (first) convolution of a task."""
    weight, spec, space = task.spec.weights[0], task.spec, task.target.storage.index_space
    assert weight is not None
    how = space.tile // machine.vector.lanes, weight[-1], kernel_activation(spec, prefix), masked, residual
    if spec["stride"][0] == 1:
        return depthwise(machine.vector, *how, unrolled=machine.panels.unrolled)
    return depthwise_strided(machine.vector, *how)


def depthwise_call(task: Task, machine: Machine, target: Buffer, residual: Buffer | None, prefix: str = "", strip: int = 0) -> Call:
    """One depthwise convolution from the first source of ``task`` to ``target``; ``strip`` bounds the tiles of one visit."""
    spec, source, space = task.spec, task.sources[0], target.storage.index_space
    weight, bias = task.weights[:2]
    assert weight is not None
    lo, hi = clamp_bounds(spec, prefix)
    runs = one_run(len(weight))
    units, shares = units_of(space.tiles, runs, by_rows=False)
    common = {
        "channels": len(weight),
        "x_channel": source.storage.channel_step,
        "pitch": space.pitch,
        "y_tile": target.storage.tile_step,
        "y_channel": target.storage.channel_step,
        "lo": lo,
        "hi": hi,
        **shares,
    }
    buffers = {"x": source, "y": target}
    if residual is not None:
        buffers["residual"] = residual
        common |= {"r_tile": residual.storage.tile_step, "r_channel": residual.storage.channel_step}
    scalars = common
    if spec["stride"][0] > 1:
        scalars = {**common, "x_pitch": source.storage.index_space.pitch, "height": space.height, "width": space.width}
        slot = scratch_elements(strip or space.tiles, space.tile, space.pitch)
        buffers["scratch"] = Buffer(f"{task.node}.scratch", Storage("single", slot, dtype=task.spec.dtype), slot=slot)
    return Call(
        source=depthwise_kernel(task, machine, target.storage.layout == "halo", residual is not None, prefix),
        node=task.node,
        kind="depthwise",
        buffers=buffers,
        writes=("y",),
        constants={**pack_depthwise(weight, bias), "mask": mask_of(space), "runs": runs},
        scalars=scalars,
        units=units,
        flops=2 * weight.size * space.height * space.width,
        bytes=source.storage.nbytes + target.storage.nbytes + (residual.storage.nbytes if residual else 0),
        detail={"schedule": {"kernel": "depthwise", "vectors": space.tile // machine.vector.lanes}},
    )


def strip_tiles(channels: int, space: Geometry, machine: Machine) -> int:
    """Tiles per strip of a fused pair: the strip of tiled channels takes about an eighth of the second-level cache."""
    return max(1, min(space.tiles, machine.l2 // 8 // (4 * channels * space.tile)))


def strip_buffer(task: Task, channels: int, space: Geometry, strip: int) -> Buffer:
    """Packed storage for a strip, once per thread."""
    storage = Storage("tiled", channels, space, task.spec.dtype)
    return Buffer(f"{task.node}.strip", storage, slot=strip * storage.tile_step, unit=storage.tile_step)
