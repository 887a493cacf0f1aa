"""The x86 backend: which specs it has kernels for, candidate schedules, and the calls that compute a task."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsec.backends.base import Machine, Refusal, Source
from sparsec.backends.plan import Buffer, Call, Group, Task
from sparsec.backends.x86 import library, moves, shares
from sparsec.backends.x86.attention_calls import attention_groups
from sparsec.backends.x86.machine import machine as this_machine
from sparsec.backends.x86.panel_costs import Work, best_tile
from sparsec.backends.x86.products import Product, nominal_work, panel_call, product_of, schedules
from sparsec.backends.x86.pruning import OPS as PRUNING_OPS
from sparsec.backends.x86.pruning import pruning_groups
from sparsec.backends.x86.stencils import depthwise_call, depthwise_refusal, is_depthwise, pool_groups, strip_buffer, strip_tiles
from sparsec.backends.x86.tokens import OPS as TOKEN_OPS
from sparsec.backends.x86.tokens import token_groups
from sparsec.backends.x86.vectors import elementwise_groups, vector_call, vector_matrix, vector_schedules, vector_verdict
from sparsec.backends.x86.verdict import Verdict, compare
from sparsec.layouts import Storage
from sparsec.regions import Region, parity_step
from sparsec.spec import KernelSpec, Schedule

_ONLY: Schedule = (("kernel", "only"),)
_LONGEST_STEP = 32
_SKIPPING = ("spmm", "gemv_rows", "gemv_windows")
#: Pixels per tile that kernels come with.
TILES = (64, 32)
#: Tokens per tile where their number follows a run-time size: work is saved by whole tiles.
FREE_TILE = 16


class X86:
    """Kernels in TensorIR for x86-64 with AVX2 or AVX512, float32.

    ``tile`` is the pixels of a tile in the layouts where ``with_tiles`` has not chosen another.
    """

    name = "x86"

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or this_machine()
        self.tile = TILES[0]

    def offers(self, spec: KernelSpec) -> Refusal | None:
        """None if a kernel exists for ``spec``, else why not."""
        if spec.dtype != "float32":
            return Refusal(f"{spec.dtype}; kernels compute in float32")
        if spec.op == "linear" and len(spec.inputs[0]) > 2:
            return Refusal("a linear layer on a map")
        if spec.op == "conv2d":
            return None if is_depthwise(spec) and spec.output[1:] != (1, 1) else _convolution_refusal(spec)
        if spec.op == "depthwise_pointwise":
            return depthwise_refusal(spec) if spec.output[1:] != (1, 1) else Refusal("a fused pair of convolutions on a single pixel")
        if spec.op in ("max_pool2d", "avg_pool2d") and (spec.output[1:] == (1, 1) or spec.inputs[0][1:] == (1, 1)):
            return Refusal(f"{spec.op} to or from a single pixel")
        if spec.op == "global_avg_pool" and spec.inputs[0][1:] == (1, 1):
            return Refusal("pooling of a single pixel")
        return None

    def schedules(self, task: Task) -> list[Schedule]:
        """Candidates, the default first. Ops with one way to compute them have one, weights that are not finite dense ones only."""
        found = self._candidates(task)
        finite = json.loads(task.spec.weight_fact).get("reason") != "non-finite"
        return found if finite else [s for s in found if dict(s)["kernel"] not in _SKIPPING]

    def _candidates(self, task: Task) -> list[Schedule]:
        if _is_vector_product(task):
            return vector_schedules(vector_matrix(task), self.machine)
        if _is_map_product(task.spec):
            return [schedule for _, schedule in self.predicted(task)]
        return [_ONLY]

    def predicted(self, task: Task) -> list[tuple[float, Schedule]]:
        """(predicted cycles, schedule) of the candidates of a product over a map, the fastest first."""
        return schedules(self._product(task), self.machine, task.target.storage.space)

    def verdict(self, task: Task, call: Call) -> Verdict | None:
        """Why ``call``, whose task is a product, runs the kernel it runs; None for other tasks."""
        if call.kind not in ("dense", "sparse"):
            return None
        stays_dense = call.kind == "dense"
        if not task.target.storage.is_map:
            return vector_verdict(vector_matrix(task), self.machine, stays_dense)
        product, space = self._product(task), task.target.storage.space
        return compare(product.work(space.pixels, self.machine), self.machine, space.tile, stays_dense)

    def with_tiles(self, region: Region) -> Region:
        """``region`` with the tile of each resolution on which its products together are predicted fastest."""
        works: dict[tuple[int, int], list[Work]] = defaultdict(list)
        for spec in region.specs.values():
            if _is_map_product(spec):
                size = (1, spec.output[0]) if len(spec.output) == 2 else (spec.output[1], spec.output[2])
                works[size].append(nominal_work(spec, region.space(*size), self.machine))
        tiles = {size: best_tile(found, self.machine, TILES) for size, found in works.items()}
        return replace(region, tiles=tiles | self._token_tiles(region, works))

    def _token_tiles(self, region: Region, works: Mapping[tuple[int, int], list[Work]]) -> dict[tuple[int, int], int]:
        """One tile for all numbers of tokens: what chooses among tokens moves them between values of one tile."""
        sizes = {(1, spec.output[0]) for spec in region.specs.values() if len(spec.output) == 2}
        sizes |= {(1, shape[0]) for spec in region.specs.values() for shape in spec.inputs if len(shape) == 2}
        if region.follows:
            return dict.fromkeys(sizes, FREE_TILE)
        found = [work for size in sizes for work in works.get(size, [])]
        return dict.fromkeys(sizes, best_tile(found, self.machine, TILES)) if found else {}

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        """The groups of calls that compute ``task``."""
        op = task.spec.op
        if _is_vector_product(task):
            return [Group((vector_call(task, vector_matrix(task), schedule, self.machine),))]
        if op == "depthwise_pointwise":
            return [self._fused_pair(task, schedule)]
        if op == "conv2d" and is_depthwise(task.spec):
            return [Group((depthwise_call(task, self.machine, task.target, task.target.storage.space),))]
        if op in ("conv2d", "linear"):
            return [Group((panel_call(task, self._product(task), schedule, self.machine),))]
        if op == "attention":
            return attention_groups(task, self.machine)
        if op in TOKEN_OPS:
            return token_groups(task, self.machine)
        if op in PRUNING_OPS:
            return pruning_groups(task, self.machine)
        if op in ("max_pool2d", "avg_pool2d", "global_avg_pool"):
            return pool_groups(task, self.machine)
        return elementwise_groups(task, self.machine)

    def share(self, groups: Sequence[Group]) -> list[Group]:
        """``groups``, in their order, with what threads take of each decided."""
        return shares.settle(groups)

    def _product(self, task: Task) -> Product:
        weight, bias = task.weights[2:4] if task.spec.op == "depthwise_pointwise" else task.weights[:2]
        assert weight is not None
        if task.spec.op == "linear":
            return product_of(weight[:, :, None, None], bias, _pointwise(task.spec), task.sources[0].storage)
        if task.spec.op == "conv2d":
            return product_of(weight, bias, task.spec, task.sources[0].storage)
        middle = Storage("packed", weight.shape[1], task.target.storage.space)
        return product_of(weight, bias, _pointwise(task.spec), middle)

    def _fused_pair(self, task: Task, schedule: Schedule) -> Group:
        space, product = task.target.storage.space, self._product(task)
        channels = product.matrix.shape[1]
        strip = strip_tiles(channels, space, self.machine)
        middle = strip_buffer(task, channels, space, strip)
        first = depthwise_call(task, self.machine, middle, space, "dw_", strip)
        inner = Task(task.node, task.spec, (middle,), task.residual, task.target, task.weights[2:4])
        return Group((first, panel_call(inner, product, schedule, self.machine)), strip)

    def covers(self, have: Storage, want: Storage, shape: tuple[int, ...]) -> bool:
        """Whether ``copy`` moves a value of ``shape`` from one storage to the other."""
        return moves.covers(have, want, shape)

    def copy(self, source: Buffer, target: Buffer) -> Call:
        """Move a value between storages that ``covers`` allows."""
        return moves.copy(source, target, self.machine)

    def rearrange(self, source: Buffer, target: Buffer, have: np.ndarray, want: np.ndarray) -> Call:
        """Move each element from address ``have[i]`` of the source to address ``want[i]`` of the target."""
        return moves.rearrange(source, target, have, want, self.machine)

    def planes(self, source: Buffer, target: Buffer, step: int) -> Call:
        """Space-to-depth of a contiguous or flat map into flat parity planes, all or the first of each channel."""
        return moves.planes(source, target, step, self.machine)

    def build(self, kernels: list[Source], cache: Path | None) -> Path:
        """The path of a library with these kernels."""
        return library.build(kernels, self.machine, cache)


def _is_vector_product(task: Task) -> bool:
    """Whether a task is a product with one vector."""
    op = task.spec.op
    return (op == "linear" and len(task.spec.output) == 1) or (op == "conv2d" and task.target.storage.layout == "vector")


def _is_map_product(spec: KernelSpec) -> bool:
    """Whether a spec is a product over the pixels of a map, or over tokens."""
    if spec.op == "linear":
        return len(spec.output) == 2
    pixels = len(spec.output) == 3 and spec.output[1:] != (1, 1)
    return pixels and (spec.op == "depthwise_pointwise" or (spec.op == "conv2d" and not is_depthwise(spec)))


def _pointwise(spec: KernelSpec) -> KernelSpec:
    """The 1x1 convolution inside a fused pair, or that a linear layer over tokens is."""
    plain = {"groups": 1, "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    return KernelSpec("conv2d", spec.inputs, spec.output, spec.weights[2:], attributes=tuple(plain.items()))


def _convolution_refusal(spec: KernelSpec) -> Refusal | None:
    """A convolution is a product over shifted rows if its output has ceil(input / stride) pixels along each axis."""
    weight, stride = spec.weights[0], spec["stride"]
    if weight is None or len(spec.inputs[0]) != 3 or stride[0] != stride[1]:
        return Refusal(f"a convolution with stride {stride} of {spec.inputs[0]}")
    same = all(out == -(-size // stride[0]) for size, out in zip(spec.inputs[0][1:], spec.output[1:], strict=True))
    taps = [(k - 1) * d - p for k, d, p in zip(weight[2:], spec["dilation"], spec["padding"], strict=True)]
    if not same or min(taps) < 0 or parity_step(spec) > _LONGEST_STEP:
        return Refusal(
            f"a {weight[2]}x{weight[3]} convolution of {spec.inputs[0][1:]} to {spec.output[1:]}: kernels exist for same padding"
        )
    if spec.inputs[0][1:] == (1, 1):
        return None
    if spec.output[1:] == (1, 1):
        return Refusal(f"a convolution of {spec.inputs[0][1:]} to a single pixel")
    # Depthwise stencils read the map itself, so whatever looks depthwise has no parity planes.
    return Refusal(f"depthwise {weight[2]}x{weight[3]} with stride {stride}") if stride[0] > parity_step(spec) else None
