"""Layers on vectors: linear layers, 1x1 convolutions on one pixel, elementwise operators."""

from __future__ import annotations

import numpy as np

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu.bounds import clamp_bounds, kernel_activation
from sparsec.backends.cpu.gemv import gemv_blocks, gemv_rows, index_dtype, pack_blocks, pack_rows
from sparsec.backends.cpu.gemv_windows import gemv_windows, pack_windows
from sparsec.backends.cpu.geometry import mask_of
from sparsec.backends.cpu.pointwise_ops import map_op, vector_op
from sparsec.backends.cpu.verdict import Verdict
from sparsec.backends.plan import Call, Group, Task
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.affine import Count

_NOTHING = np.zeros(16, np.float32)


def vector_matrix(task: Task) -> np.ndarray:
    """The [N, K] matrix of a linear layer, or of a convolution that sees one pixel: at most one tap meets data."""
    weight = task.weights[0]
    assert weight is not None
    if weight.ndim == 2:
        return weight
    groups, taps = int(task.spec["groups"]), _pixel_taps(weight, task.spec)
    outputs, per_group = taps.shape
    matrix = np.zeros((outputs, per_group * groups), np.float32)
    for g in range(groups):
        rows = slice(g * outputs // groups, (g + 1) * outputs // groups)
        matrix[rows, g * per_group : (g + 1) * per_group] = taps[rows]
    return matrix


def _pixel_taps(weight: np.ndarray, spec: KernelSpec) -> np.ndarray:
    """[O, I/groups]: tap i reads pixel i * dilation - padding, so the one for which that is 0; zeros where there is none."""
    (top, y), (left, x) = (divmod(p, d) for p, d in zip(spec["padding"], spec["dilation"], strict=True))
    return weight[:, :, top, left] if y == x == 0 else np.zeros(weight.shape[:2], weight.dtype)


def is_vector(spec: KernelSpec) -> bool:
    """Whether the result of ``spec`` is one vector: [C], or one pixel [C, 1, 1]."""
    return spec.output[1:] in ((), (1, 1))


def gemv_schedules(task: Task, machine: Machine) -> list[Schedule]:
    """The candidates of a product with a vector, the one predicted fastest first."""
    return vector_schedules(vector_matrix(task), machine)


def gemv_kernels(task: Task, schedule: Schedule, machine: Machine) -> tuple[Source, ...]:
    """The kernel of a product with a vector."""
    return (vector_kernel(task, schedule, machine),)


def vector_kernel(task: Task, schedule: Schedule, machine: Machine) -> Source:
    """The kernel of a product with a vector: it depends on shapes and attributes, not on weights."""
    shape, choice = task.spec.weights[0], dict(schedule)["kernel"]
    assert shape is not None
    inputs = shape[1] * (int(task.spec["groups"]) if len(shape) > 2 else 1)
    index, variant = index_dtype(inputs), (kernel_activation(task.spec), task.residual is not None)
    if choice == "gemv_rows":
        return gemv_rows(machine.vector, index, *variant)
    if choice == "gemv_windows":
        return gemv_windows(machine.vector, index, *variant)
    return gemv_blocks(machine.vector, _vectors(shape[0], machine), index, *variant)


def gemv_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """A product with a vector."""
    return [Group((vector_call(task, vector_matrix(task), schedule, machine),))]


def _bytes(matrix: np.ndarray, machine: Machine) -> dict[str, float]:
    """Bytes that each kernel streams, in units of a dense kernel's byte: scattered nonzeros also wait for their inputs."""
    lanes, permutes = machine.vector.lanes, machine.vector.permute is not None
    block = lanes * _vectors(matrix.shape[0], machine)
    rows = -(-matrix.shape[0] // block) * block
    padded = np.zeros((rows, matrix.shape[1]), bool)
    padded[: len(matrix)] = matrix != 0
    kept = int(padded.reshape(-1, block, matrix.shape[1]).any(axis=1).sum()) * block
    nonzeros = int(padded.sum())
    windows = {"gemv_windows": 8.0 * nonzeros} if permutes and matrix.shape[1] >= 2 * lanes else {}
    return {"gemv_dense": 4.0 * rows * matrix.shape[1], "gemv_blocks": 4.2 * kept, "gemv_rows": 12.0 * nonzeros} | windows


def vector_schedules(matrix: np.ndarray, machine: Machine) -> list[Schedule]:
    """Candidates, the one predicted fastest first."""
    costs = _bytes(matrix, machine)
    return [(("kernel", kernel),) for kernel in sorted(costs, key=costs.__getitem__)]


def vector_verdict(matrix: np.ndarray, machine: Machine, stays_dense: bool) -> Verdict:
    """Why a product with a vector runs the kernel it runs; cycles at 8 bytes each, what memory gives one core."""
    costs = _bytes(matrix, machine)
    dense = costs.pop("gemv_dense")
    density = np.count_nonzero(matrix) / max(matrix.size, 1)
    best = min(costs["gemv_rows"], costs.get("gemv_windows", np.inf)) if stays_dense else min(costs.values())
    return Verdict(density, best / 8, dense / 8, stays_dense, 0.5 if "gemv_windows" in costs else 1 / 3)


def _vectors(outputs: int, machine: Machine) -> int:
    return 4 if outputs >= 4 * machine.vector.lanes else 1


def vector_call(task: Task, matrix: np.ndarray, schedule: Schedule, machine: Machine) -> Call:
    """One product of a matrix with the source vector."""
    bias, choice, lanes = task.weights[1], dict(schedule)["kernel"], machine.vector.lanes
    lo, hi = clamp_bounds(task.spec)
    units = -(-len(matrix) // lanes)
    if choice == "gemv_rows":
        constants = pack_rows(matrix, bias, lanes)
    elif choice == "gemv_windows":
        constants = pack_windows(matrix, bias, lanes)
    else:
        vectors = _vectors(len(matrix), machine)
        constants = pack_blocks(matrix, bias, lanes * vectors, dense=choice == "gemv_dense")
        units = -(-len(matrix) // (lanes * vectors))
    work = int(constants["value"].size)
    return Call(
        source=vector_kernel(task, schedule, machine),
        node=task.node,
        kind="dense" if choice == "gemv_dense" else "sparse",
        buffers={"x": task.sources[0], "y": task.target, "residual": task.residual or task.target},
        writes=("y",),
        constants=constants,
        scalars={"outputs": len(matrix), "lo": lo, "hi": hi},
        units=units,
        flops=2 * work,
        bytes=sum(a.nbytes for a in constants.values()),
        detail={"nonzeros": int(np.count_nonzero(matrix)), "size": int(matrix.size), "schedule": dict(schedule)},
    )


def elementwise_breach(spec: KernelSpec) -> str:
    """What the shapes of an operator on equal shapes, or of a map times one factor per channel, lack for its kernel."""
    wanted, channels = [spec.output] * len(spec.inputs), dict(spec.attributes).get("channels")
    if channels is not None:
        if len(spec.output) != 3 or is_vector(spec):
            return "a factor per channel of other than a map"
        wanted[channels] = (spec.output[0], 1, 1)
    return "" if list(spec.inputs) == wanted else f"{spec.op} that broadcasts {list(spec.inputs)} to {spec.output}"


def elementwise_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """add, mul (maps, vectors, or a map with one factor per channel) and lone activations."""
    spec, x = task.spec, task.sources[0]
    z = task.sources[1] if len(task.sources) > 1 else x
    op = spec.op if spec.op in ("add", "mul") else "copy"
    if "channels" in dict(spec.attributes):
        op = "scale"
        x, z = (z, x) if spec["channels"] == 0 else (x, z)
    activation = kernel_activation(spec)
    lo, hi = clamp_bounds(spec)
    target, lanes = task.target, machine.vector.lanes
    vector = not target.storage.is_map
    scalars: dict[str, int | float] = {"lo": lo, "hi": hi}
    if vector:
        source = vector_op(machine.vector, op, activation)
        # Numbers per token are one run of as many elements as there are tokens.
        length = target.storage.channels or target.storage.index_space.count
        scalars["length"] = length
        units = length.ceil_div(lanes) if isinstance(length, Count) else -(-length // lanes)
    else:
        space = target.storage.index_space
        source = map_op(machine.vector, space.tile // lanes, op, activation, masked=target.storage.layout == "halo")
        scalars |= {"channels": target.storage.channels, "x_tile": x.storage.tile_step, "x_channel": x.storage.channel_step}
        scalars |= {"z_tile": 0, "z_channel": 1} if op == "scale" else {"z_tile": z.storage.tile_step, "z_channel": z.storage.channel_step}
        scalars |= {"y_tile": target.storage.tile_step, "y_channel": target.storage.channel_step}
        units = space.tiles
    call = Call(
        source=source,
        node=task.node,
        kind="elementwise",
        buffers={"x": x, "z": z, "y": target},
        writes=("y",),
        constants={"scale": _NOTHING, "shift": _NOTHING, **({} if vector else {"mask": mask_of(target.storage.index_space)})},
        scalars=scalars,
        units=units,
        flops=target.storage.elements,
        bytes=x.storage.nbytes + target.storage.nbytes + (0 if z is x else z.storage.nbytes),
    )
    return [Group((call,))]
