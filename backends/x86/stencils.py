"""Depthwise convolutions, alone or feeding a 1x1 convolution strip by strip, and pooling."""

from __future__ import annotations

import numpy as np

from sparsec.backends.base import Machine, Refusal
from sparsec.backends.plan import Buffer, Call, Group, Task
from sparsec.backends.x86.bounds import clamp_bounds, kernel_activation
from sparsec.backends.x86.depthwise import depthwise, pack_depthwise
from sparsec.backends.x86.depthwise_strided import depthwise_strided, scratch_elements
from sparsec.backends.x86.geometry import mask_of
from sparsec.backends.x86.pool import Window, global_pool, window_arguments, window_pool
from sparsec.backends.x86.shares import one_run, units_of
from sparsec.layouts import Geometry, Storage
from sparsec.spec import KernelSpec

SIZES = (3, 5, 7)


def depthwise_refusal(spec: KernelSpec, prefix: str = "") -> Refusal | None:
    """Why the depthwise kernels cannot compute the (first) convolution of ``spec``."""
    weight = spec.weights[0]
    if weight is None or len(spec.inputs[0]) != 3:
        return Refusal("a depthwise convolution without a map")
    kernel, stride, padding = weight[2:], spec["stride"], spec["padding"]
    if kernel[0] != kernel[1] or kernel[0] not in SIZES:
        return Refusal(f"depthwise {kernel[0]}x{kernel[1]}; kernels exist for square {', '.join(map(str, SIZES))}")
    if stride[0] != stride[1] or stride[0] not in (1, 2):
        return Refusal(f"depthwise with stride {stride}; kernels exist for 1 and 2")
    if tuple(padding) != (kernel[0] // 2, kernel[0] // 2) or dict(spec.attributes).get("dilation", (1, 1)) != (1, 1):
        return Refusal(f"depthwise with padding {padding}; kernels exist for same padding without dilation")
    return None


def is_depthwise(spec: KernelSpec) -> bool:
    """Whether ``spec`` is a depthwise convolution with one output per channel that the stencils compute; products compute the others."""
    weight = spec.weights[0] if spec.weights else None
    if spec.op != "conv2d" or weight is None or weight[1] != 1 or not spec["groups"] == spec.inputs[0][0] == weight[0] != 1:
        return False
    return depthwise_refusal(spec) is None


def depthwise_call(task: Task, machine: Machine, target: Buffer, space: Geometry, prefix: str = "", strip: int = 0) -> Call:
    """One depthwise convolution from the first source of ``task`` to ``target`` on ``space``; ``strip`` bounds the tiles of one visit."""
    spec, source = task.spec, task.sources[0]
    weight, bias = task.weights[:2]
    assert weight is not None
    kernel, step = weight.shape[-1], int(spec["stride"][0])
    masked = target.storage.layout == "flat"
    activation, vectors = kernel_activation(spec, prefix), space.tile // machine.lanes
    lo, hi = clamp_bounds(spec, prefix)
    runs = one_run(len(weight))
    units, shares = units_of(space.tiles, runs, by_rows=False)
    common = {
        "channels": len(weight),
        "x_row": source.storage.row_step,
        "pitch": space.pitch,
        "y_tile": target.storage.tile_step,
        "y_row": target.storage.row_step,
        "lo": lo,
        "hi": hi,
        **shares,
    }
    buffers = {"x": source, "y": target}
    if step == 1:
        kernel_source, scalars = depthwise(machine.lanes, vectors, kernel, activation, masked), common
    else:
        kernel_source = depthwise_strided(machine.lanes, vectors, kernel, activation, masked)
        scalars = {**common, "x_pitch": source.storage.space.pitch, "height": space.height, "width": space.width}
        slot = scratch_elements(strip or space.tiles, space.tile, space.pitch)
        buffers["scratch"] = Buffer(f"{task.node}.scratch", Storage("vector", slot), slot=slot)
    return Call(
        source=kernel_source,
        node=task.node,
        kind="depthwise",
        buffers=buffers,
        writes=("y",),
        constants={**pack_depthwise(weight, bias), "mask": mask_of(space), "runs": runs},
        scalars=scalars,
        units=units,
        flops=2 * weight.size * space.height * space.width,
        bytes=4 * (source.storage.elements + target.storage.elements),
        detail={"schedule": {"kernel": "depthwise", "vectors": vectors}},
    )


def strip_tiles(channels: int, space: Geometry, machine: Machine) -> int:
    """Tiles per strip of a fused pair: the strip of packed channels takes about an eighth of the second-level cache."""
    return max(1, min(space.tiles, machine.l2 // 8 // (4 * channels * space.tile)))


def strip_buffer(task: Task, channels: int, space: Geometry, strip: int) -> Buffer:
    """Packed storage for a strip, once per thread."""
    storage = Storage("packed", channels, space)
    return Buffer(f"{task.node}.strip", storage, slot=strip * storage.tile_step, unit=storage.tile_step)


def pool_groups(task: Task, machine: Machine) -> list[Group]:
    """Max, average and global average pooling."""
    call = _global_pool(task, machine) if task.spec.op == "global_avg_pool" else _window_pool(task, machine)
    return [Group((call,))]


def _global_pool(task: Task, machine: Machine) -> Call:
    source, space = task.sources[0].storage, task.sources[0].storage.space
    return Call(
        source=global_pool(machine.lanes, space.tile // machine.lanes, "mean"),
        node=task.node,
        kind="pool",
        buffers={"x": task.sources[0], "y": task.target},
        writes=("y",),
        constants={"mask": mask_of(space)},
        scalars={"tiles": space.tiles, "x_tile": source.tile_step, "x_row": source.row_step, "scale": 1.0 / (space.height * space.width)},
        units=source.channels,
        flops=source.channels * space.height * space.width,
        bytes=4 * source.elements,
    )


def _window_pool(task: Task, machine: Machine) -> Call:
    spec, source, target = task.spec, task.sources[0].storage, task.target.storage
    window = Window(spec["kernel_size"], spec["stride"], spec["padding"], bool(dict(spec.attributes).get("count_include_pad", True)))
    arguments = window_arguments(window, source.space, target.space, machine.lanes)
    constants = {k: v for k, v in arguments.items() if isinstance(v, np.ndarray)}
    kind = "max" if spec.op == "max_pool2d" else "mean"
    return Call(
        source=window_pool(machine.lanes, kind, window.kernel[1], window.stride[1]),
        node=task.node,
        kind="pool",
        buffers={"x": task.sources[0], "y": task.target},
        writes=("y",),
        constants=constants,
        scalars={k: v for k, v in arguments.items() if k not in constants},
        units=source.channels,
        flops=target.channels * target.space.height * target.space.width * window.kernel[0] * window.kernel[1],
        bytes=4 * (source.elements + target.elements),
    )
