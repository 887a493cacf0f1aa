"""Pooling tasks as calls of the pooling kernels."""

from __future__ import annotations

import numpy as np

from sparsec.backends.base import Machine
from sparsec.backends.cpu.geometry import mask_of
from sparsec.backends.cpu.pool import Window, global_pool, window_arguments, window_pool
from sparsec.backends.plan import Call, Group, Task
from sparsec.lower.spec import KernelSpec, Schedule


def window_pool_breach(spec: KernelSpec) -> str:
    """What the shapes of a pool over windows lack for its kernel."""
    return f"{spec.op} to or from a single pixel" if (1, 1) in (spec.output[1:], spec.inputs[0][1:]) else ""


def global_pool_breach(spec: KernelSpec) -> str:
    """What the shapes of a pool over whole maps lack for its kernel."""
    return "pooling of a single pixel" if spec.inputs[0][1:] == (1, 1) else ""


def global_pool_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """The mean of every channel."""
    source, space = task.sources[0].storage, task.sources[0].storage.index_space
    vectors = space.tile // machine.vector.lanes
    call = Call(
        source=global_pool(machine.vector, vectors, "mean"),
        node=task.node,
        kind="pool",
        buffers={"x": task.sources[0], "y": task.target},
        writes=("y",),
        constants={"mask": mask_of(space)},
        scalars={
            "tiles": space.tiles,
            "x_tile": source.tile_step,
            "x_channel": source.channel_step,
            "scale": 1.0 / (space.height * space.width),
        },
        units=source.channels,
        flops=source.channels * space.height * space.width,
        bytes=source.nbytes,
    )
    return [Group((call,))]


def window_pool_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """Maxima or means of windows."""
    spec, source, target = task.spec, task.sources[0].storage, task.target.storage
    window = Window(spec["kernel_size"], spec["stride"], spec["padding"], bool(dict(spec.attributes).get("count_include_pad", True)))
    arguments = window_arguments(window, source.index_space, target.index_space, machine.vector.lanes)
    constants = {k: v for k, v in arguments.items() if isinstance(v, np.ndarray)}
    kind = "max" if spec.op == "max_pool2d" else "mean"
    call = Call(
        source=window_pool(machine.vector, kind, window.kernel[1], window.stride[1]),
        node=task.node,
        kind="pool",
        buffers={"x": task.sources[0], "y": task.target},
        writes=("y",),
        constants=constants,
        scalars={k: v for k, v in arguments.items() if k not in constants},
        units=source.channels,
        flops=target.channels * target.index_space.height * target.index_space.width * window.kernel[0] * window.kernel[1],
        bytes=source.nbytes + target.nbytes,
    )
    return [Group((call,))]
