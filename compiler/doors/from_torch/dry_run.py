"""What a module calls when it runs without data: functions of torch, with the numbers and the constants that they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_NORM = inspect.signature(functional.batch_norm)
#: All numbers among the arguments of these are sizes, and what they make is the same everywhere.
FILLED = frozenset(new + name for new in ("", "new_") for name in ("zeros", "ones", "empty"))
#: What these fill with is a number, their sizes are a sequence.
FULL = frozenset({"full", "new_full"})

Shape = tuple[int, ...]
#: Equal to nothing.
_UNKNOWN = torch.tensor(float("nan"))


@contextmanager
def without_data(shapes: ShapeEnv | None = None) -> Iterator[None]:
    """Here functions of torch make tensors without data, of those of a module too."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes)
    try:
        with mode:
            yield
    finally:
        let_go(mode)


def let_go(mode: FakeTensorMode) -> None:
    """Forgets the tensors that stand-ins were made of: torch.utils.swap_tensors refuses one that has a weak reference, and a mode, which
    refers to itself, lives until the next collection of garbage."""
    mode.fake_tensor_converter.meta_converter.describer.lookup_tensor.clear()


def run_without_data(func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """What a function makes of tensors without data.

    A normalisation by known statistics makes a tensor like its input; torch takes it apart for that, which is most of what a run of a
    convolutional network without data takes.
    """
    if func is functional.batch_norm:
        given = _NORM.bind(*args, **kwargs)
        given.apply_defaults()
        x, mean, variance, weight, bias, training = list(given.arguments.values())[:6]
        if not training and _fits(x, [each for each in (mean, variance, weight, bias) if each is not None]):
            return torch.empty_like(x)
    return func(*args, **kwargs)


def _fits(x: Tensor, channels: Sequence[Tensor]) -> bool:
    """Whether these are numbers of each channel of x, of its dtype. A number of channels that is a symbol is not asked."""
    if x.dim() < 2 or type(x.shape[1]) is not int or not channels:
        return False
    return all(each.shape == (x.shape[1],) and each.dtype == x.dtype for each in channels)


@dataclass(frozen=True)
class Call:
    """given, shapes: those of tensors among the arguments and results. constants: the arguments that are made of sizes alone."""

    name: str
    numbers: tuple[Any, ...]
    shapes: tuple[Shape, ...]
    given: tuple[Shape, ...] = ()
    constants: tuple[Tensor, ...] = ()

    @property
    def kind(self) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """Its name, the ranks of what it makes and of what it is given."""
        return self.name, tuple(map(len, self.shapes)), tuple(map(len, self.given))


class CallLog(TorchFunctionMode):
    """Keeps what functions of torch are called with and make; those inside of others are torch's own.

    What is made of sizes alone gets its values, as in ``x + torch.ones(n, n).tril()``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._known: dict[int, tuple[Tensor, Tensor | None]] = {}

    def start(self, inputs: Any) -> None:
        """Forget what was called so far; ``inputs`` hold the tensors that a call gives."""
        self.calls.clear()
        self._known = {id(x): (x, None) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = run_without_data(func, args, kwargs or {})
        given = [*args, *(kwargs or {}).values()]
        leaves = given if func.__name__ in FULL else pytree.tree_leaves(given)
        numbers = tuple(_numbers(leaf) for leaf in leaves if isinstance(leaf, int | float | slice))
        constants = self._follow(func, args, kwargs or {}, result)
        if shapes := shapes_of(result):
            self.calls.append(Call(func.__name__, numbers, shapes, shapes_of(given), constants))
        return result

    def _follow(self, func: Any, args: tuple, kwargs: Mapping[str, Any], result: Any) -> tuple[Tensor, ...]:
        """Note what the results are; the values of constants made of sizes among the arguments of a function of inputs."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = [self._known[id(x)][1] for x in tensors if id(x) in self._known]
        values = [value for value in known if value is not None]
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if len(values) < len(known):
            self._known |= {id(x): (x, None) for x in made}
            return tuple(values)
        if values or (not tensors and func.__name__ in FILLED | FULL):
            # What would write to a tensor of the model is not run.
            found = [] if tensors and id(tensors[0]) not in self._known and writes(func.__name__) else self._computed(func, args, kwargs)
            self._known |= {id(x): (x, value) for x, value in zip(made, found or [_UNKNOWN] * len(made), strict=True)}
        return ()

    def _computed(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
        def value(x: Tensor) -> Tensor:
            return self._known.get(id(x), (x, x))[1]  # type: ignore[return-value]

        with unset_fake_temporarily(), suppress(Exception):
            made = func(*pytree.tree_map_only(Tensor, value, args), **pytree.tree_map_only(Tensor, value, dict(kwargs)))
            found = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]
            # What is computed of weights on the way has no values here.
            return [_UNKNOWN if isinstance(leaf, FakeTensor) else leaf for leaf in found]
        return []


def _numbers(value: Any) -> Any:
    """A slice as its numbers, where tensors of sizes may stand as well; what they are is known of those that hold a constant."""
    if isinstance(value, slice):
        return tuple(map(_numbers, (value.start, value.stop, value.step)))
    if not isinstance(value, Tensor):
        return value
    with suppress(Exception):
        return int(value)
    return float("nan")  # Equal to nothing.


def writes(name: str) -> bool:
    """Whether a function of this name changes its first argument."""
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def returned(results: Any) -> Call:
    """The end of a call as one of its functions: how its results are nested, those that are numbers or names, and the tensors' shapes."""
    leaves, structure = pytree.tree_flatten(results)
    constants = tuple(leaf for leaf in leaves if isinstance(leaf, int | float | str))
    return Call("a result", (structure, *constants), shapes_of(leaves))


def shapes_of(values: Any) -> tuple[Shape, ...]:
    """Those of the tensors among values."""
    return tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
