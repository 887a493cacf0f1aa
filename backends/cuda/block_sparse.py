"""Products with a weight in blocks, most of them zero: what is packed, how it is cut, what is launched.

y[m, n] = act(x[m, k] @ W[n, k].T + bias[n] + residual[m, n])

A new mask is other lists, and compiles nothing. Rows of blocks with many are made in parts by several thread blocks, whose sums are added
in order by a second kernel: results do not depend on who comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sparsec.backends.cuda.launch import ALIGNED, Kernel, Launch
from sparsec.backends.cuda.machine import WARP, Gpu

ACTIVATIONS = ("none", "clamp", "gelu", "gelu_tanh", "silu")
#: Points of a block of the kernel that adds parts.
_COMBINED = 16


@dataclass(frozen=True)
class Schedule:
    """``outputs`` x ``inputs``: of a block of the weight. ``points``: of a thread block. ``precision``: of products of float32 numbers,
    "ieee", or "tf32" where that was asked for. ``most``: blocks of the weight that one thread block takes of a row, 0 for all.
    """

    outputs: int
    inputs: int
    points: int
    warps: int
    stages: int
    precision: str = "ieee"
    most: int = 0


@dataclass(frozen=True)
class Layer:
    """What a layer computes: y [., n] of x [., k], ``dtype`` of all but the bias (float32). ``activation``: of ``ACTIVATIONS``."""

    n: int
    k: int
    dtype: str
    bias: bool = True
    residual: bool = False
    activation: str = "none"


def candidates(layer: Layer, block: tuple[int, int], gpu: Gpu, allow_tf32: bool = False) -> list[Schedule]:
    """Schedules for a weight in blocks of ``block``, (outputs, inputs), that fit the GPU."""
    outputs, inputs = block
    exact = layer.dtype == "float32" and not allow_tf32
    precision = "tf32" if layer.dtype == "float32" and allow_tf32 else "ieee"
    # Products of float32 that are not rounded run without tensor cores, on registers.
    tiles = ((32, 4, 3), (32, 8, 3), (64, 8, 3)) if exact else ((64, 4, 5), (128, 4, 5), (128, 4, 7), (128, 8, 5), (256, 8, 5))
    # Sums of a thread that leave registers for the rest; where the result is stored number by number, each has an address.
    most = (16 if exact else 64) // (1 if layer.n % ALIGNED == 0 else 2)
    found = [Schedule(outputs, inputs, points, warps, stages, precision) for points, warps, stages in tiles]
    return [
        each for each in found if each.points * outputs <= most * WARP * each.warps and shared_bytes(layer, each, gpu) <= gpu.block_shared
    ]


def shared_bytes(layer: Layer, schedule: Schedule, gpu: Gpu) -> int:
    """Of a thread block: its part of x and a block of the weight, as often as loads are under way. The instructions of sm_90 read both from
    shared memory while the next are loaded, which takes one more.
    """
    nbytes = 4 if layer.dtype == "float32" else 2
    buffers = (schedule.stages - 1) // 2 + (gpu.capability >= 90 and not (nbytes == 4 and schedule.precision == "ieee"))
    return buffers * (schedule.points + schedule.outputs) * schedule.inputs * nbytes


def pack(weight: np.ndarray, schedule: Schedule) -> dict[str, np.ndarray]:
    """The constants of the kernels.

    Args:
        weight: [n, k], float32.
        schedule: whose blocks are packed; those that are all zero are left out. Sizes need be no multiples of theirs.

    Returns:
        ``weight`` [blocks, outputs, inputs] float32, in order of rows, then columns; ``columns`` [blocks] int32; ``items`` [items, 4] and
        ``split`` [rows in parts, 3] int32 (see ``kernels``), the longest items first.
    """
    rows, columns = (-(-size // step) for size, step in zip(weight.shape, (schedule.outputs, schedule.inputs), strict=True))
    whole = np.zeros((rows * schedule.outputs, columns * schedule.inputs), np.float32)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    blocks = whole.reshape(rows, schedule.outputs, columns, schedule.inputs).swapaxes(1, 2)
    present = (blocks != 0).any(axis=(2, 3))
    items, split = cut(present.sum(axis=1), schedule.most)
    return {
        "weight": np.ascontiguousarray(blocks[present]),
        "columns": np.nonzero(present)[1].astype(np.int32),
        "items": items,
        "split": split,
    }


def cut(counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """``items`` and ``split`` of rows with ``counts`` blocks, of which an item takes at most ``most`` (0: all), about equally many."""
    start = np.concatenate([[0], np.cumsum(counts)])
    items: list[tuple[int, int, int, int]] = []
    split: list[tuple[int, int, int]] = []
    slots = 0
    for row, count in enumerate(counts):
        parts = max(1, -(-int(count) // most)) if most else 1
        bounds = [int(start[row] + part * count // parts) for part in range(parts + 1)]
        first = slots if parts > 1 else -1
        items += [(row, a, b, first + number if parts > 1 else -1) for number, (a, b) in enumerate(pairwise(bounds))]
        if parts > 1:
            slots += parts
            split.append((row, first, slots))
    longest = sorted(items, key=lambda item: item[1] - item[2])
    return np.array(longest, np.int32).reshape(-1, 4), np.array(split, np.int32).reshape(-1, 3)


def slots(packed: dict[str, np.ndarray]) -> int:
    """How many sums of parts there are: ``partial`` is [slots, m, outputs] float32."""
    return int(packed["split"][:, 2].max(initial=0))


def launches(
    layer: Layer, schedule: Schedule, packed: dict[str, np.ndarray], m: int, rows: dict[str, int], bounds: tuple[float, float] = (0.0, 0.0)
) -> list[Launch]:
    """What computes the layer for ``m`` points.

    ``rows``: elements from a point to the next of x, y and the residual, by name. ``bounds``: of the activation "clamp".
    """
    if not m or not layer.n:
        return []
    lo, hi = bounds
    known = {"m": m, "n": layer.n, "y_row": rows["y"], "r_row": rows.get("residual", 0), "lo": lo, "hi": hi}
    split = len(packed["split"])
    numbers = {**known, "k": layer.k, "x_row": rows["x"]}
    product = product_kernel(layer, schedule, aligned_of(numbers), split > 0)
    found = [Launch(product, (len(packed["items"]), -(-m // schedule.points)), numbers)]
    return [*found, *([Launch(combine_kernel(layer, schedule, aligned_of(known)), (split, -(-m // _COMBINED)), known)] * (split > 0))]


def aligned_of(numbers: Mapping[str, float]) -> tuple[str, ...]:
    """The sizes and strides that are multiples of ``ALIGNED``: all of what is read or none, all of what is written or none."""
    sides = [[name for name in side if name in numbers] for side in (("k", "x_row"), ("n", "y_row", "r_row"))]
    return tuple(name for side in sides if all(numbers[each] % ALIGNED == 0 for each in side) for name in side)


def product_kernel(layer: Layer, schedule: Schedule, aligned: tuple[str, ...], split: bool) -> Kernel:
    """``aligned``: see ``aligned_of``."""
    shapes = (("BM", schedule.points), ("BN", schedule.outputs), ("BK", schedule.inputs))
    choices = (("EVEN", layer.k % schedule.inputs == 0), ("SPLIT", split), ("PRECISION", schedule.precision))
    return Kernel(
        function="block_sparse",
        pointers=_pointers(layer, "x", "weight", "y", "partial", "bias", "residual", "items", "columns"),
        numbers=_numbers("m", "n", "k", "x_row", "y_row", "r_row"),
        aligned=aligned,
        constants=(*shapes, *choices, *_epilogue(layer)),
        warps=schedule.warps,
        stages=schedule.stages,
    )


def combine_kernel(layer: Layer, schedule: Schedule, aligned: tuple[str, ...]) -> Kernel:
    """The kernel that adds parts."""
    return Kernel(
        function="combine",
        pointers=_pointers(layer, "y", "partial", "bias", "residual", "split"),
        numbers=_numbers("m", "n", "y_row", "r_row"),
        aligned=aligned,
        constants=(("BM", _COMBINED), ("BN", schedule.outputs), *_epilogue(layer)),
        warps=4,
        stages=3,
    )


def _pointers(layer: Layer, *names: str) -> tuple[tuple[str, str], ...]:
    dtypes = dict.fromkeys(("x", "weight", "y", "residual"), layer.dtype) | dict.fromkeys(("partial", "bias"), "float32")
    return tuple((name, dtypes.get(name, "int32")) for name in names)


def _numbers(*names: str) -> tuple[tuple[str, str], ...]:
    return (*((name, "i32") for name in names), ("lo", "fp32"), ("hi", "fp32"))


def _epilogue(layer: Layer) -> tuple[tuple[str, int | str | bool], ...]:
    return ("BIAS", layer.bias), ("RESIDUAL", layer.residual), ("ACTIVATION", layer.activation)
