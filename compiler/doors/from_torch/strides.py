"""What a model makes of how its inputs lie in memory, which is then part of its program.

x.stride(0), x.is_contiguous()      numbers of the example, compiled in
x.as_strided(...)                   elements of the example's memory
y, y.flatten(1), y.contiguous()     one memory or several, by the example's strides
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules import flatten
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sparsec.errors import UnsupportedModel

aten = torch.ops.aten
TORCH_FOLDER = os.path.dirname(torch.__file__) + os.sep
#: Files in PyTorch's folder that call on behalf of the model, by their beginning: where a graph of Dynamo's is replayed.
ON_BEHALF: tuple[str, ...] = (fx.interpreter.__file__, flatten.__file__)

#: Operators whose results are of the memory of their first argument, whatever its shape says.
OF_STORAGE = frozenset({aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default, aten.resize.default})
_STRIDES = frozenset({Tensor.stride, Tensor.is_contiguous, Tensor.dim_order})
_PLACES = frozenset({Tensor.storage_offset, Tensor.untyped_storage, Tensor.data_ptr})
_CONTIGUOUS = frozenset({Tensor.contiguous, Tensor.ravel, torch.ravel})
_SHAPED = frozenset({Tensor.reshape, Tensor.reshape_as, Tensor.flatten, torch.reshape, torch.flatten})
_COPYING = _CONTIGUOUS | _SHAPED | {Tensor.to}
_NOTED = _STRIDES | _PLACES | _COPYING


class Asked(TorchFunctionMode):
    """Notes which of these the model's own code calls while it is captured.

    strides: what depends on strides alone. contiguous, shaped: copies that are none where strides fit. views: of each of these calls of
    the last trace whether its result has the memory of its argument. left_out: whether one was ``contiguous`` of what a stand-in says is,
    of which a graph has nothing: but with ``marking``, where it is a view of its own dtype. told: the numbers that the last trace
    said of strides. unsure: see ``reshapes``.
    """

    def __init__(self, marking: bool = False) -> None:
        super().__init__()
        self.marking, self.left_out = marking, False
        self.strides = self.contiguous = self.shaped = False
        self.views: list[bool] = []
        self.told: list[Any] = []
        self.unsure: fx.Node | None = None

    def __enter__(self) -> Asked:
        self.views, self.told, self.unsure, self.left_out = [], [], None, False
        super().__enter__()
        return self

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function. UnsupportedModel where it tells an address."""
        if func not in _NOTED or _asked_by_torch():
            return func(*args, **(kwargs or {}))
        if func in _PLACES:
            raise UnsupportedModel("The model asks where in memory a tensor lies.", why=func.__name__)
        self.strides |= func in _STRIDES
        self.contiguous |= func in _CONTIGUOUS
        self.shaped |= func in _SHAPED
        result = func(*args, **(kwargs or {}))
        if func in _STRIDES:
            self.told.append(pytree.tree_map(_plain, result))
        if func in _COPYING:
            given = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            self.views.append(_memory(result) == _memory(given))
            if result is given and func is Tensor.contiguous:
                self.left_out = True
                return aten.view.dtype(result, result.dtype) if self.marking else result
        return result


def _plain(number: Any) -> Any:
    """A size of the example, without fixing a free one to it."""
    return number if isinstance(number, int) else number.node.hint


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata if x.layout == torch.strided else id(x)


def _asked_by_torch() -> bool:
    """Whether the call comes from PyTorch, which tells for itself what strides it has compiled in."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    name = frame.f_code.co_filename
    return name.startswith(TORCH_FOLDER) and not name.startswith(ON_BEHALF)


def contiguous_strides(shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """Those of a new tensor."""
    return torch.empty(shape, device="meta").stride()
