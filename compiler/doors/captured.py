"""What a captured model is: a graph, what it takes, and how to get from a user's arguments to its inputs and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsec.doors.borrowed import Borrowed
from sparsec.doors.from_torch.aliasing import Aliasing
from sparsec.doors.from_torch.lower import Fixed, Slot
from sparsec.doors.from_torch.strides import contiguous_strides
from sparsec.errors import InvalidInput
from sparsec.ir.symbols import Dim, Signature, SymbolSpec

NO_SYMBOLS = Signature()


@dataclass(frozen=True)
class InputSpec:
    """One tensor that the graph takes: the name of its placeholder, its shape and dtype.

    dims: the same shape where some axes follow sizes known at run time; empty where none does. strides: those that the program was made
    for, where it depends on the strides of its inputs; None where any serve.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    dims: tuple[Dim, ...] = ()
    strides: tuple[int, ...] | None = None

    def takes_strides(self, tensor: Tensor) -> bool:
        """Whether the program serves a tensor that lies in memory like this one; its shape is that of the input, or of another batch."""
        if self.strides is None or (tensor.stride(), tensor.shape) == (self.strides, self.shape):
            return True
        return self.strides == contiguous_strides(self.shape) and tensor.stride() == contiguous_strides(tensor.shape)


@dataclass(frozen=True, eq=False)
class Captured:
    """A graph of form CAPTURED and how to get from a user's arguments to its inputs and back.

    The graph takes `inputs` in this order and returns a flat tuple of tensors, of which ``aliasing`` makes the results if they share memory
    with each other or with inputs; ``out_slots`` are positions among those. Its constants are detached, dense and
    contiguous. Those of Dynamo's graphs share memory with the model where its own are so already; others are copies, or ``borrowed``.

    Of a program with symbolic sizes: its ``signature``, the ``sizes`` for which this graph is made, which symbols are ``batches`` (see
    ``Symbolic``), what the dimensions of the results follow, None where that is no Affine, and ``remade``, which makes the graph
    for other sizes. ``one_batch``: why only the batch of the example is served, or those from ``least_batch`` on; empty where the samples
    say nothing of their number. ``stepped``: symbols of which it makes other use than two sizes tell.
    ``names``: inputs may be given by position or by these names; empty where the structure alone says what is meant.
    """

    graph_module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    in_slots: tuple[Slot, ...]
    out_slots: tuple[Slot, ...]
    keywords: tuple[str, ...]
    names: tuple[str, ...] = ()
    signature: Signature = NO_SYMBOLS
    sizes: Mapping[str, int] = field(default_factory=dict)
    batches: frozenset[str] = frozenset()
    output_dims: tuple[tuple[Dim | None, ...], ...] = ()
    remade: Callable[[Mapping[str, int]], Captured] | None = None
    aliasing: Aliasing | None = None
    one_batch: str = ""
    least_batch: int = 0
    stepped: frozenset[str] = frozenset()
    borrowed: Borrowed | None = None

    @property
    def symbols(self) -> Mapping[str, SymbolSpec]:
        """The sizes that are free, by name."""
        return self.signature.symbols

    @property
    def batch(self) -> str:
        """The symbol that is dimension 0 of everything; empty if there is none or inputs have several."""
        return next(iter(self.batches)) if len(self.batches) == 1 else ""

    @property
    def depends_on_strides(self) -> bool:
        """Whether it serves only inputs that lie in memory as those that it was made for."""
        return any(spec.strides is not None for spec in self.inputs)

    def takes_strides(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the program serves inputs that lie in memory like these."""
        return all(spec.takes_strides(x) for spec, x in zip(self.inputs, tensors, strict=True))

    def sizes_of(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """The size of every symbol in a call with these inputs. InvalidInput where their shapes fit no sizes."""
        return self.signature.sizes([x.shape for x in tensors]) if self.symbols else {}

    @property
    def fixed_batch(self) -> bool:
        """Whether no symbol is dimension 0 of an input."""
        return not self.signature.leading

    @property
    def served(self) -> tuple[int, int | None]:
        """The least and the largest batch that the graph stands for, None without end: what else it does is in its conditions."""
        if self.one_batch:
            batch = next(spec.shape[0] for spec in self.inputs if spec.shape)
            return (self.least_batch, None) if self.least_batch else (batch, batch)
        alike = {self.sizes[name] for name in self.batches}
        return self.signature.run(self.sizes, self.batches) if len(alike) == 1 else (0, None)

    def at(self, sizes: Mapping[str, int]) -> Captured:
        """The same program for other sizes of its symbols. InvalidInput or UnsupportedModel where there is none."""
        if self.remade is None:
            raise InvalidInput("The program has fixed sizes.", why=str(dict(sizes)))
        return self.remade(sizes)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
        """The tensors among a call's arguments in the order of `inputs`. InvalidInput if the structure differs."""
        given = dict(kwargs or {})
        if self.names:
            args, given = self._by_name(args, given), {}
        ordered = {name: given.pop(name) for name in self.keywords if name in given} | given
        leaves, spec = pytree.tree_flatten((tuple(args), ordered))
        if spec != self.in_spec:
            raise InvalidInput("The arguments are not those that the model was compiled for.", why=_unlike(self.in_spec, spec))
        for leaf, slot in zip(leaves, self.in_slots, strict=True):
            _check_leaf(leaf, slot)
        return [leaf for leaf, slot in zip(leaves, self.in_slots, strict=True) if not isinstance(slot, Fixed)]

    def _by_name(self, args: Sequence[Any], given: dict[str, Any]) -> tuple[Any, ...]:
        named = [given.pop(name) for name in self.names[len(args) :] if name in given]
        if given or len(args) + len(named) != len(self.names):
            wrong = f"{', '.join(sorted(given))} are not expected." if given else f"{len(args) + len(named)} were given."
            raise InvalidInput("The arguments are not those of the model.", why=wrong, hint=f"Its inputs are {', '.join(self.names)}.")
        return *args, *named

    def restore(self, tensors: Sequence[Tensor], inputs: Sequence[Tensor] = ()) -> Any:
        """The graph's flat outputs in the structure that the model returns. ``inputs``: what ``flatten`` gave for the call."""
        return self.nested(tensors if self.aliasing is None else self.aliasing.restore(tensors, inputs))

    def nested(self, results: Sequence[Tensor]) -> Any:
        """The results in the structure that the model returns."""
        leaves = [slot.value if isinstance(slot, Fixed) else results[slot] for slot in self.out_slots]
        return pytree.tree_unflatten(leaves, self.out_spec)

    @property
    def shares_results(self) -> bool:
        """Whether results are other than just what the graph returns: one of them twice, views, inputs."""
        positions = [slot for slot in self.out_slots if not isinstance(slot, Fixed)]
        return self.aliasing is not None or len(set(positions)) < len(positions)


def _check_leaf(leaf: Any, slot: Slot) -> None:
    if isinstance(slot, Fixed) and not _is(slot.value, leaf):
        raise InvalidInput(f"The program was compiled for the argument {slot.value!r}.", why=f"{leaf!r} was given.", hint="Compile again.")
    if not isinstance(slot, Fixed) and not isinstance(leaf, Tensor):
        raise InvalidInput(f"A tensor is expected, got {type(leaf).__name__}.")


def _is(value: Any, leaf: Any) -> bool:
    """Whether an argument is the one that was compiled in."""
    if not isinstance(value, Tensor):
        return not isinstance(leaf, Tensor) and bool(leaf == value)
    leaf = torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.generic) else leaf
    alike = isinstance(leaf, Tensor) and (leaf.shape, leaf.dtype, leaf.device) == (value.shape, value.dtype, value.device)
    return alike and leaf.detach().resolve_neg().numpy().tobytes() == value.numpy().tobytes()


def _unlike(wanted: pytree.TreeSpec, given: pytree.TreeSpec) -> str:
    """What is otherwise about the arguments of a call: their number and names, or how one is nested."""
    for place, was, now in _parts(wanted, given):
        if was != now:
            return f"{place}: compiled for {was}, got {now}."
    return f"Compiled for {_nest(wanted)}, got {_nest(given)}."


def _parts(wanted: pytree.TreeSpec, given: pytree.TreeSpec) -> Iterator[tuple[str, str, str]]:
    (args, kwargs), (new_args, new_kwargs) = ([spec.child(0), spec.child(1)] for spec in (wanted, given))
    yield "Positional arguments", str(args.num_children), str(new_args.num_children)
    yield "Keyword arguments", ", ".join(map(str, kwargs.context or ())) or "none", ", ".join(map(str, new_kwargs.context or ())) or "none"
    for number, (was, now) in enumerate(zip(args.children(), new_args.children(), strict=True)):
        yield f"Argument {number}", _nest(was), _nest(now)
    for name, was, now in zip(kwargs.context or (), kwargs.children(), new_kwargs.children(), strict=True):
        yield f"Argument {name!r}", _nest(was), _nest(now)


def _nest(spec: pytree.TreeSpec) -> str:
    """A nest of values in Python's own notation."""
    parts = [_nest(child) for child in spec.children()]
    if spec.is_leaf():
        return "a value"
    if spec.type is dict:
        return "{" + ", ".join(f"{name!r}: {part}" for name, part in zip(spec.context, parts, strict=True)) + "}"
    inside = ", ".join(parts)
    plain = {tuple: f"({inside})", list: f"[{inside}]", type(None): "None"}
    return plain.get(spec.type) or f"{getattr(spec.type, '__name__', spec.type)}({inside})"
