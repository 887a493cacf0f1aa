"""What may be computed from constants while compiling: bounded in all, so that no small file takes all memory or hours."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

#: Bytes of all results besides GROWTH times those that are given; floating-point operations (some ten seconds of one core).
SPARE_BYTES, GROWTH, MOST_FLOPS = 1 << 28, 16, 1 << 39


class Budget:
    """What is left for one graph whose constants have ``given`` bytes."""

    def __init__(self, given: int) -> None:
        self._bytes, self._flops = SPARE_BYTES + GROWTH * given, MOST_FLOPS

    def spend(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> str:
        """Take off what a call costs, by the shapes and dtypes of tensors; the reason where there is not so much left."""
        work = _flops(target, args, kwargs, result)
        if work > self._flops:
            return f"constants would take {work:,} operations more, {self._flops:,} are left"
        if reason := self.hold(result):
            return reason
        self._flops -= work
        return ""

    def hold(self, values: Any) -> str:
        """The same for tensors that are there or read from a file."""
        size = bytes_of(values)
        if size > self._bytes:
            return f"constants would take {size:,} bytes more, {self._bytes:,} are left"
        self._bytes -= size
        return ""


def bytes_of(values: Any) -> int:
    """Bytes of all tensors in a nest, of each as if it shared memory with no other."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _flops(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Of products and convolutions, also inside of composite operators; others take about as long as writing their results."""
    count = flop_registry.get(getattr(target, "_overloadpacket", None))
    if count is not None:
        return int(count(*args, **kwargs, out_val=result))
    if not isinstance(target, OpOverload) or not target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
        return 0
    shapes = tree_map_only(Tensor, lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta"), (tuple(args), kwargs))
    with contextlib.suppress(RuntimeError, NotImplementedError), torch.no_grad(), FlopCounterMode(display=False) as counter:
        target(*shapes[0], **shapes[1])
    return int(counter.get_total_flops())
