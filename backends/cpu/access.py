"""How the kernels read and write maps: which layouts, parity planes, how far a stencil reads beyond its pixel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sparsec.lower.layouts import Layouts
from sparsec.lower.spec import KernelSpec

_POOLS = ("max_pool2d", "avg_pool2d")


def layouts_of(spec: KernelSpec) -> Layouts:
    """The layouts of the first operand and of the result of ``spec``."""
    if spec.op in _POOLS:
        return Layouts(reads=("halo",), writes=("halo",))
    if spec.op == "depthwise_pointwise":
        return Layouts(reads=("halo",))
    if spec.op == "alias" and spec.inputs[0] != spec.output:
        return Layouts(reads=("halo",))  # Rows of a map that is read in another shape are copied one by one.
    if spec.op != "conv2d":
        return Layouts()
    kernel = spec.weights[0][2:] if spec.weights[0] else (1, 1)
    if kernel == (1, 1) and spec["stride"] == (1, 1):
        return Layouts(prefers="tiled")
    return Layouts(reads=("halo",), planes=parity_step(spec), first_plane=reads_one_plane(spec))


def parity_step(spec: KernelSpec) -> int:
    """The stride of a dense strided convolution over a map, which reads parity planes; 1 for everything else."""
    groups = dict(spec.attributes).get("groups", 1)
    if spec.op != "conv2d" or len(spec.inputs[0]) != 3 or groups == spec.inputs[0][0] == spec.output[0] != 1:
        return 1
    return 1 if spec.inputs[0][1:] == (1, 1) else int(spec["stride"][0])


def reads_one_plane(spec: KernelSpec) -> bool:
    """Whether a strided convolution reads the first of its parity planes only: one tap without padding, such as a shortcut's."""
    return parity_step(spec) > 1 and spec.weights[0] is not None and spec.weights[0][2:] == (1, 1) and spec["padding"] == (0, 0)


def pads_of(specs: Iterable[KernelSpec]) -> dict[tuple[int, int], int]:
    """Zero columns that stencils need at each resolution they read, or read through parity planes."""
    pads: dict[tuple[int, int], int] = defaultdict(int)
    for spec in specs:
        reach = _reach(spec)
        for shape in (spec.output,) if parity_step(spec) > 1 else (spec.inputs[0], spec.output):
            if reach and len(shape) == 3:
                pads[shape[1], shape[2]] = max(pads[shape[1], shape[2]], reach)
    return dict(pads)


def _reach(spec: KernelSpec) -> int:
    """How far a stencil reads beyond its pixel, in pixels of its input or, if it reads parity planes, of the planes."""
    if spec.op not in ("conv2d", "depthwise_pointwise") or spec.weights[0] is None or len(spec.output) != 3:
        return 0
    step, dilation = parity_step(spec), dict(spec.attributes).get("dilation", (1, 1))
    ends = [(-p // step, (d * (k - 1) - p) // step) for p, d, k in zip(spec["padding"], dilation, spec.weights[0][2:], strict=True)]
    return max(max(-first, last) for first, last in ends)
