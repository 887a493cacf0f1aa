"""Symbolic dimensions of ONNX models: sizes from examples, what inputs and outputs follow."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from sparsec.doors.from_onnx.graph import OnnxInput
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.ir.symbols import LARGEST, Dim, Signature, SymbolSpec
from sparsec.run.affine import Affine

Shapes = list[tuple[int, ...]]
Remake = Callable[[Mapping[str, int]], fx.GraphModule]


def example_shapes(inputs: Sequence[OnnxInput], example_inputs: Any = None) -> Shapes:
    """The shape of each input. InvalidInput for examples that do not fit, or are needed and missing."""
    return _default_shapes(inputs) if example_inputs is None else _given_shapes(inputs, example_inputs)


def _default_shapes(inputs: Sequence[OnnxInput]) -> Shapes:
    batch = {entry.dims[0] for entry in inputs if entry.dims}
    unknown = [entry for entry in inputs if entry.dims is None or any(_is_open(dim, axis, batch) for axis, dim in enumerate(entry.dims))]
    if unknown:
        shown = "; ".join(f"{entry.name}: {_shown(entry.dims)}" for entry in unknown)
        raise InvalidInput("The model has inputs of unknown sizes.", why=shown, hint="Give example inputs of the sizes to compile for.")
    return [tuple(dim if isinstance(dim, int) else 1 for dim in entry.dims or ()) for entry in inputs]


def _is_open(dim: int | str, axis: int, batch: set[int | str]) -> bool:
    """Whether nothing says how large a dimension is; a symbolic first one is taken to be a batch of 1."""
    return isinstance(dim, str) and axis > 0 and (not dim or dim not in batch)


def _shown(dims: Sequence[int | str] | None) -> str:
    return "unknown rank" if dims is None else f"[{', '.join(str(dim) or '?' for dim in dims)}]"


def _given_shapes(inputs: Sequence[OnnxInput], example_inputs: Any) -> Shapes:
    examples, shapes = examples_by_name(inputs, example_inputs), []
    for entry in inputs:
        tensor = _as_tensor(examples[entry.name], entry.name)
        shapes.append(tuple(tensor.shape))
        fits = entry.dims is None or len(entry.dims) == tensor.dim()
        wrong = fits and any(dim != size for dim, size in zip(entry.dims or (), tensor.shape, strict=False) if isinstance(dim, int))
        if tensor.dtype != entry.dtype or not fits or wrong:
            wanted = f"The model takes {_shown(entry.dims)} {entry.dtype}"
            raise InvalidInput(f"The example for {entry.name!r} does not fit.", why=f"{wanted}, not {list(tensor.shape)} {tensor.dtype}.")
    return shapes


def examples_by_name(inputs: Sequence[OnnxInput], example_inputs: Any) -> dict[str, Any]:
    """What is given for each input. InvalidInput for other names or another number."""
    names = [entry.name for entry in inputs]
    if isinstance(example_inputs, Mapping):
        given = dict(example_inputs)
    else:
        values = [example_inputs] if isinstance(example_inputs, Tensor | np.ndarray) else list(example_inputs)
        given = dict(zip(names, values, strict=False)) if len(values) == len(names) else {}
    if set(given) != set(names):
        raise InvalidInput("The example inputs are not those of the model.", hint=f"Its inputs are {', '.join(names)}.")
    return given


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.empty(value.shape, value.dtype))
    except (AttributeError, TypeError) as error:
        raise InvalidInput(f"The example for {name!r} is neither tensor nor array of numbers.", why=str(error)) from error


# What axes follow


def signature_of(inputs: Sequence[OnnxInput], shapes: Shapes) -> Signature:
    """Every symbolic dimension as a free size of its name; one without a name is free by itself."""
    dims = [
        tuple(
            _axis(entry, axis, dim) if isinstance(dim, str) else dim for axis, dim in enumerate(shape if entry.dims is None else entry.dims)
        )
        for entry, shape in zip(inputs, shapes, strict=True)
    ]
    symbols = {dim.symbol: SymbolSpec(dim.symbol) for each in dims for dim in each if isinstance(dim, Affine)}
    return Signature(tuple(entry.name for entry in inputs), tuple(dims), symbols)


def _axis(entry: OnnxInput, axis: int, name: str) -> Affine:
    return Affine(name or f"{entry.name}_{axis}")


def first_choice(signature: Signature, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes to compile for, given an example's: of tokens the next bucket."""
    return {name: signature.symbols[name].aligned(size) if name in signature.tokens else size for name, size in sizes.items()}


def bounded(signature: Signature, sizes: Mapping[str, int], lengths: Iterable[int], remake: Remake) -> Signature:
    """The signature with the largest number of tokens that the graph can be made for; none is noted where that is beyond `LARGEST`.

    `lengths` are those of the model's tables, one of which is the likely limit.
    """
    symbols = {}
    for name in signature.tokens:

        def works(size: int, name: str = name) -> bool:
            try:
                remake({**sizes, name: size})
            except (UnsupportedModel, InvalidInput):
                return False
            return True

        symbols[name] = SymbolSpec(name, most=None if works(LARGEST) else _largest(sizes[name], lengths, works))
    return replace(signature, symbols={**signature.symbols, **symbols})


def _largest(size: int, lengths: Iterable[int], works: Callable[[int], bool]) -> int | None:
    """The largest size that works, `size` being one; None where its neighbours do not, since it then hangs together with others."""
    low, high = size, LARGEST
    for length in sorted({length for length in lengths if size < length < LARGEST}, reverse=True):
        if works(length):
            low = length
            break
        high = length
    middle = low + 1
    while high - low > 1:
        low, high = (middle, high) if works(middle) else (low, middle)
        middle = (low + high) // 2
    return low if low > size or size == 1 or works(size - 1) else None


def _inner(dims: Sequence[Sequence[Dim | None]]) -> set[str]:
    """The symbols of other dimensions."""
    return {dim.symbol for each in dims for dim in each[1:] if isinstance(dim, Affine)}


def followed(
    graph_module: fx.GraphModule, signature: Signature, sizes: Mapping[str, int], remake: Remake
) -> tuple[tuple[Dim | None, ...], ...]:
    """What the dimensions of the results follow, found by making the graph again with one size changed at a time.

    Batches of several inputs change together and count as that of the first. None where a length follows sizes in a way that an
    Affine cannot say, or where the graph cannot be made with another size.
    """
    base = _result_shapes(graph_module)
    changed: dict[str, Shapes | None] = {}
    for name, alike in _groups(signature, sizes).items():
        try:
            changed[name] = _result_shapes(remake({**sizes, **dict.fromkeys(alike, other_size(sizes[name]))}))
        except (UnsupportedModel, InvalidInput):
            changed[name] = None
    return tuple(
        tuple(
            _followed_by(length, {name: _length(shapes, result, axis, len(shape)) for name, shapes in changed.items()}, sizes)
            for axis, length in enumerate(shape)
        )
        for result, shape in enumerate(base)
    )


def _groups(signature: Signature, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Symbols to change together, by the first of them."""
    leading = signature.leading
    batches = [name for name in sizes if name in leading]
    if len({sizes[name] for name in batches}) > 1 or leading & _inner(signature.dims):
        batches = batches[:1]
    return {name: batches if name in batches else [name] for name in sizes if name not in batches[1:]}


def other_size(size: int) -> int:
    """About two thirds, and odd, so that roundings show."""
    smaller = size * 2 // 3 | 1
    return smaller if smaller != size else size + 2


def _result_shapes(graph_module: fx.GraphModule) -> Shapes:
    results = graph_module.graph.output_node().args[0]
    return [tuple(node.meta["val"].shape) for node in results]  # type: ignore[union-attr]


def _length(shapes: Shapes | None, result: int, axis: int, rank: int) -> int | None:
    return shapes[result][axis] if shapes is not None and len(shapes[result]) == rank else None


def _followed_by(length: int, changed: Mapping[str, int | None], sizes: Mapping[str, int]) -> Dim | None:
    moved = {name: other for name, other in changed.items() if other != length}
    if not moved:
        return length
    ((name, other), *more) = moved.items()
    times, rest = (0, 1) if other is None else divmod(other - length, other_size(sizes[name]) - sizes[name])
    return None if more or rest or times < 1 else Affine(name, length - times * sizes[name], times)


def batch_symbols(signature: Signature, outputs: Sequence[Sequence[Dim | None]]) -> frozenset[str]:
    """The symbols that dimension 0 of every input and result follows and nothing else does; none where there is another."""
    everything = [*signature.dims, *outputs]
    leading = signature.leading
    common = all(dims and dims[0] in [Affine(name) for name in leading] for dims in everything)
    alone = not any(dim is None for dims in everything for dim in dims[1:]) and not leading & _inner(everything)
    return frozenset(leading) if common and alone else frozenset()
