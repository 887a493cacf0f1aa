"""Convolutions and linear layers as sparse or dense products: weight offsets, candidate kernels, calls.

A weight [O, I/groups, kh, kw] becomes a matrix [O, K] over the K input rows that a tile can reach, each at an element offset from the
tile's origin. Groups are zeros of that matrix. So 1x1, same-padded kxk, strided (through parity planes) and grouped convolutions
are one product, and the kernels know nothing of convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import panel_costs
from sparsec.backends.cpu.access import parity_step, reads_one_plane
from sparsec.backends.cpu.block import block, pack_block
from sparsec.backends.cpu.bounds import clamp_bounds, kernel_activation
from sparsec.backends.cpu.geometry import mask_of, tile_of
from sparsec.backends.cpu.panel_costs import Work, block_rows
from sparsec.backends.cpu.partition import one_run, units_of
from sparsec.backends.cpu.spmm import pack_rows, spmm
from sparsec.backends.plan import Buffer, Call, Group, Task
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec, Schedule

_LONGEST_STEP = 32


@dataclass(frozen=True, eq=False)
class Product:
    """A layer as a product: ``matrix`` [O, K], the element ``offsets`` [K] of its input rows, ``bias`` [O]."""

    matrix: np.ndarray
    offsets: np.ndarray
    bias: np.ndarray

    @property
    def nonzeros(self) -> int:
        """Multiplications per pixel that are left."""
        return int(np.count_nonzero(self.matrix))

    def blocks(self, rows: int) -> int:
        """Blocks of ``rows`` outputs x 1 input that hold a nonzero."""
        count = -(-self.matrix.shape[0] // rows)
        padded = np.zeros((count * rows, self.matrix.shape[1]), bool)
        padded[: len(self.matrix)] = self.matrix != 0
        return int(padded.reshape(count, rows, -1).any(axis=1).sum())

    def work(self, pixels: int, machine: Machine) -> Work:
        """What cost prediction needs to know, over ``pixels`` of flat index space."""
        outputs, inputs = self.matrix.shape
        return Work(outputs, inputs, pixels, self.nonzeros, {rows: self.blocks(rows) for rows in block_rows(machine)})


def product_of(weight: np.ndarray, bias: np.ndarray | None, spec: KernelSpec, source: Storage) -> Product:
    """The product of a convolution of ``spec`` that reads ``source`` (halo, tiled, or parity planes with a halo if strided)."""
    outputs, per_group, height, width = weight.shape
    groups = spec["groups"]
    inputs = per_group * groups
    matrix = weight
    if groups > 1:
        matrix = np.zeros((outputs, inputs, height, width), np.float32)
        for g in range(groups):
            rows = slice(g * outputs // groups, (g + 1) * outputs // groups)
            matrix[rows, g * per_group : (g + 1) * per_group] = weight[rows]
    offsets = _offsets(inputs, (height, width), spec, source)
    zero = np.zeros(outputs, np.float32)
    return Product(matrix.reshape(outputs, -1), offsets.reshape(-1), zero if bias is None else bias.astype(np.float32))


def product_of_task(task: Task) -> Product:
    """The product over a map that a task computes: for a fused pair, that of its 1x1 convolution."""
    weight, bias = _weight_of(task)
    return product_of(weight, bias, *_read_by(task))


def _weight_of(task: Task) -> tuple[np.ndarray, np.ndarray | None]:
    """The weight [O, I/groups, kh, kw] and the bias of the product of a task."""
    weight, bias = task.weights[2:4] if task.spec.op == "depthwise_pointwise" else task.weights[:2]
    assert weight is not None
    return weight[:, :, None, None] if task.spec.op == "linear" else weight, bias


def _read_by(task: Task) -> tuple[KernelSpec, Storage]:
    """The convolution that a task computes last, and the storage that it reads."""
    if task.spec.op == "conv2d":
        return task.spec, task.sources[0].storage
    inner = _pointwise(task.spec)
    if task.spec.op == "linear":
        return inner, task.sources[0].storage
    shape = task.spec.weights[2]
    assert shape is not None
    return inner, Storage("tiled", shape[1], task.target.storage.index_space, task.spec.dtype)


def _index_of(task: Task) -> str:
    """The dtype that holds the offsets of a task's product: it depends on shapes alone."""
    spec, source = _read_by(task)
    shape = task.spec.weights[2 if task.spec.op == "depthwise_pointwise" else 0]
    assert shape is not None
    height, width = shape[2:] if len(shape) > 2 else (1, 1)
    offsets = _offsets(shape[1] * spec["groups"], (height, width), spec, source)
    return "uint16" if offsets.min() >= 0 and offsets.max() < 1 << 16 else "int32"


#: What is known of the products of tasks that are being compiled.
_works: WeakKeyDictionary[Task, dict[Machine, Work]] = WeakKeyDictionary()


def work_of(task: Task, machine: Machine) -> Work:
    """What cost prediction needs to know of a task's product over its pixels. Zeros are counted once."""
    known = _works.setdefault(task, {})
    if machine not in known:
        known[machine] = product_of_task(task).work(task.target.storage.index_space.pixels, machine)
    return known[machine]


def _pointwise(spec: KernelSpec) -> KernelSpec:
    """The 1x1 convolution inside a fused pair, or that a linear layer over tokens is."""
    plain = {"groups": 1, "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    return KernelSpec("conv2d", spec.inputs, spec.output, spec.weights[2:], attributes=tuple(plain.items()))


def _offsets(inputs: int, kernel: tuple[int, int], spec: KernelSpec, source: Storage) -> np.ndarray:
    """[I, kh, kw]: tap (i, j) of input c reads row s*oh + i*d - p = s*(oh + shift) + parity, that is plane (c*s + a)*s + b, shifted.

    Where only the first plane of each channel is there, it is plane c.
    """
    step = 1 if reads_one_plane(spec) else spec["stride"][0]
    (a, dy), (b, dx) = (
        (taps % step, taps // step)
        for taps in (np.arange(k) * d - p for k, d, p in zip(kernel, spec["dilation"], spec["padding"], strict=True))
    )
    c = np.arange(inputs)[:, None, None]
    plane = (c * step + a[None, :, None]) * step + b[None, None, :]
    return plane * source.channel_step + dy[None, :, None] * source.index_space.pitch + dx[None, None, :]


def product_schedules(task: Task, machine: Machine) -> list[Schedule]:
    """The candidates of a product over a map, the one predicted fastest first."""
    return [schedule for _, schedule in panel_costs.candidates(work_of(task, machine), machine, (task.target.storage.index_space.tile,))]


def product_kernels(task: Task, schedule: Schedule, machine: Machine) -> tuple[Source, ...]:
    """The kernel of a product over the pixels of a map, or over tokens."""
    return (panel_kernel(task, schedule, machine),)


def panel_kernel(task: Task, schedule: Schedule, machine: Machine) -> Source:
    """The kernel of a product: it depends on shapes, storages and attributes, not on weights."""
    choices, target = dict(schedule), task.target.storage
    index, activation, residual = _index_of(task), kernel_activation(task.spec), task.residual is not None
    masked, tile, vectors = target.layout == "halo", tile_of(target), int(choices["vectors"])
    if choices["kernel"] == "spmm":
        unroll, split = int(choices["unroll"]), int(choices["parts"]) > 1
        return spmm(machine.vector, vectors, index, activation, residual, masked, unroll=unroll, split=split, tile=tile)
    return block(machine.vector, int(choices["rows"]), vectors, tile, index, activation, residual, masked)


def product_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """A product over the pixels of a map, or over tokens."""
    return [Group((panel_call(task, schedule, machine),))]


def product_breach(spec: KernelSpec) -> str:
    """What the shapes of a layer lack to be a product over a map, over tokens or with a vector."""
    if spec.op == "linear":
        return "" if len(spec.inputs[0]) <= 2 else "a linear layer on a map"
    return _convolution_breach(spec)


def _convolution_breach(spec: KernelSpec) -> str:
    """A convolution is a product over shifted rows if its output has ceil(input / stride) pixels along each axis."""
    weight, stride = spec.weights[0], spec["stride"]
    if weight is None or len(spec.inputs[0]) != 3 or stride[0] != stride[1]:
        return f"a convolution with stride {stride} of {spec.inputs[0]}"
    same = all(out == -(-size // stride[0]) for size, out in zip(spec.inputs[0][1:], spec.output[1:], strict=True))
    taps = [(k - 1) * d - p for k, d, p in zip(weight[2:], spec["dilation"], spec["padding"], strict=True)]
    if not same or min(taps) < 0 or parity_step(spec) > _LONGEST_STEP:
        return f"a {weight[2]}x{weight[3]} convolution of {spec.inputs[0][1:]} to {spec.output[1:]}: kernels exist for same padding"
    if spec.inputs[0][1:] == (1, 1):
        return ""
    if spec.output[1:] == (1, 1):
        return f"a convolution of {spec.inputs[0][1:]} to a single pixel"
    # Depthwise stencils read the map itself, so whatever looks depthwise has no parity planes.
    return f"depthwise {weight[2]}x{weight[3]} with stride {stride}" if stride[0] > parity_step(spec) else ""


def nominal_work(spec: KernelSpec, space: Geometry, machine: Machine, density: float = 0.1) -> Work:
    """The work of a product of ``spec``'s shape at a nominal density of single nonzeros.

    Tiles are chosen by it, so that another mask of the same shape keeps its layouts and needs no other kernel.
    """
    weight = spec.weights[2 if spec.op == "depthwise_pointwise" else 0]
    assert weight is not None
    outputs, inputs = weight[0], int(np.prod(weight[1:])) * dict(spec.attributes).get("groups", 1)
    blocks = {r: int(-(-outputs // r) * inputs * (1 - (1 - density) ** r)) for r in block_rows(machine)}
    return Work(outputs, inputs, space.pixels, int(density * outputs * inputs), blocks)


def pack(task: Task, schedule: Schedule) -> dict[str, np.ndarray]:
    """The constants of a product's kernel."""
    choices, product, index = dict(schedule), product_of_task(task), _index_of(task)
    if choices["kernel"] == "spmm":
        unroll, parts = int(choices["unroll"]), int(choices["parts"])
        return pack_rows(product.matrix, product.offsets, index, product.bias, unroll=unroll, parts=parts)
    return pack_block(product.matrix, product.offsets, int(choices["rows"]), index, product.bias)


def panel_call(task: Task, schedule: Schedule, machine: Machine, source: Buffer | None = None) -> Call:
    """The call of a product's kernel, reading ``source`` or else the task's first, writing ``task.target``."""
    choices, constants, known = dict(schedule), pack(task, schedule), work_of(task, machine)
    source, target, residual = source or task.sources[0], task.target, task.residual or task.target
    lo, hi = clamp_bounds(task.spec)
    work, size = constants["value"].size, known.outputs * known.inputs
    space, parts = target.storage.index_space, int(choices.get("parts", 1))
    runs = one_run((len(constants["row_start"]) - 1) // parts)
    units, shares = units_of(space.tiles, runs, by_rows=False)
    return Call(
        source=panel_kernel(task, schedule, machine),
        node=task.node,
        kind="dense" if work >= size else "sparse",
        buffers={"x": source, "y": target, "residual": residual},
        writes=("y",),
        constants={**constants, "mask": mask_of(space), "runs": runs},
        scalars={
            "rows": known.outputs,
            "x_tile": source.storage.tile_step,
            "y_tile": target.storage.tile_step,
            "y_channel": target.storage.channel_step,
            "r_tile": residual.storage.tile_step,
            "r_channel": residual.storage.channel_step,
            "lo": lo,
            "hi": hi,
            "parts": parts,
            **shares,
        },
        units=units,
        flops=2 * work * space.height * space.width,
        bytes=sum(a.nbytes for a in constants.values()) + _touched(source, target, task.residual),
        detail={"nonzeros": known.nonzeros, "size": size, "schedule": choices},
    )


def _touched(*buffers: Buffer | None) -> int:
    return sum(b.storage.nbytes for b in buffers if b is not None)
