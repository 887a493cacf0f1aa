"""How an op's activation reaches a kernel: a compile-time kind and run-time bounds."""

from __future__ import annotations

import math

from sparsec.lower.spec import KernelSpec


def kernel_activation(spec: KernelSpec, prefix: str = "") -> str:
    """The activation that the code is specialised for; "none" is a clamp without bounds."""
    activation = str(dict(spec.attributes).get(f"{prefix}activation", "none"))
    return "clamp" if activation == "none" else activation


def clamp_bounds(spec: KernelSpec, prefix: str = "") -> tuple[float, float]:
    """Lower and upper bound of a clamp, infinite for every other activation."""
    attributes = dict(spec.attributes)
    if attributes.get(f"{prefix}activation", "none") != "clamp":
        return -math.inf, math.inf
    return float(attributes.get(f"{prefix}lo", -math.inf)), float(attributes.get(f"{prefix}hi", math.inf))
