"""Sizes known at run time: which axes follow them, what they may be, and how a call's shapes give them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sparsec.errors import InvalidInput
from sparsec.ir.shape_guards import Guard
from sparsec.run.affine import Affine

#: Sizes without a largest value are compiled for the next multiple of this.
BUCKET = 64
#: A largest value above this is as good as none.
LARGEST = 4096


@dataclass(frozen=True)
class SymbolSpec:
    """A size known at run time: from ``least`` to ``most``, or without end where that is None."""

    name: str
    least: int = 1
    most: int | None = None

    def aligned(self, size: int) -> int:
        """The bucket for a size, cut to the largest."""
        return min(bucket(size), self.most) if self.most is not None else bucket(size)

    @property
    def bound(self) -> str:
        """The range in words."""
        return f"{self.least} to {self.most}" if self.most is not None else f"at least {self.least}"


#: One dimension of an input: a length, or what it follows.
Dim = int | Affine


def bucket(size: int) -> int:
    """The next multiple of BUCKET."""
    return -(-size // BUCKET) * BUCKET


def shape_text(dims: Sequence[Dim | None]) -> str:
    """As in "[batch, tokens, 16]"; a question mark for a length that follows sizes in another way."""
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


@dataclass(frozen=True)
class Signature:
    """Names and dimensions of all inputs, their symbols, and what else must hold between lengths."""

    names: tuple[str, ...] = ()
    dims: tuple[tuple[Dim, ...], ...] = ()
    symbols: Mapping[str, SymbolSpec] = field(default_factory=dict)
    guards: tuple[Guard, ...] = ()

    @property
    def leading(self) -> set[str]:
        """The symbols that are dimension 0 of inputs."""
        return {dims[0].symbol for dims in self.dims if dims and isinstance(dims[0], Affine)}

    @property
    def tokens(self) -> set[str]:
        """The symbols that are dimension 1 of inputs [N,T] or [N,T,F], and never dimension 0."""
        rows = [dims[1] for dims in self.dims if len(dims) in (2, 3)]
        return {dim.symbol for dim in rows if isinstance(dim, Affine)} - self.leading

    def shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shapes of all inputs for these sizes."""
        return [tuple(dim.at(sizes[dim.symbol]) if isinstance(dim, Affine) else dim for dim in dims) for dims in self.dims]

    def sizes(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The size of every symbol in a call with inputs of these shapes. InvalidInput where they fit no sizes."""
        found: dict[str, tuple[int, str]] = {}
        for name, dims, shape in zip(self.names, self.dims, shapes, strict=True):
            if len(dims) != len(shape):
                raise InvalidInput(f"Input {name!r} does not fit.", why=f"It has the shape {list(shape)}, not {shape_text(dims)}.")
            for axis, (dim, length) in enumerate(zip(dims, shape, strict=True)):
                self._read(f"Axis {axis} of input {name!r}", dim, length, found)
        sizes = {symbol: size for symbol, (size, _) in found.items()}
        self._check_guards(shapes)
        return sizes

    def check(self, sizes: Mapping[str, int]) -> None:
        """InvalidInput where the program does not allow these sizes."""
        self.sizes(self.shapes(sizes))

    def allows(self, sizes: Mapping[str, int]) -> bool:
        """Whether the program's conditions hold at these sizes."""
        named = dict(zip(self.names, self.shapes(sizes), strict=True))
        return all(guard.holds(named) for guard in self.guards)

    def related(self, some: Collection[str], others: Collection[str]) -> Guard | None:
        """A condition on symbols of both collections."""
        dims = dict(zip(self.names, self.dims, strict=True))
        for guard in self.guards:
            axes = [dims[name][axis] for name, axis in guard.lengths]
            symbols = {axis.symbol for axis in axes if isinstance(axis, Affine)}
            if symbols & {*some} and symbols & {*others}:
                return guard
        return None

    def forbidden(self, sizes: Mapping[str, int], symbols: Collection[str], values: Iterable[int]) -> int | None:
        """The first of ``values`` that the program's conditions forbid where all these symbols have it and others the ``sizes`` given."""
        if not self.guards:
            return None
        return next((value for value in values if not self.allows({**sizes, **dict.fromkeys(symbols, value)})), None)

    def run(self, sizes: Mapping[str, int], symbols: Collection[str]) -> tuple[int, int | None]:
        """The sizes around theirs that these symbols, which have the same one, may have in one run: least and most, None without end.

        Zero is as good as one. What is forbidden above `LARGEST` is not looked for.
        """
        (here,) = {sizes[name] for name in symbols}
        specs = [self.symbols[name] for name in symbols]
        least = max(spec.least for spec in specs)
        most = min((spec.most for spec in specs if spec.most is not None), default=None)
        below = self.forbidden(sizes, symbols, range(here - 1, least - 1, -1))
        least = least if below is None else below + 1
        above = self.forbidden(sizes, symbols, range(here + 1, min(most or LARGEST, LARGEST) + 1))
        return (0 if least == 1 else least), (most if above is None else above - 1)

    def _read(self, where: str, dim: Dim, length: int, found: dict[str, tuple[int, str]]) -> None:
        if not isinstance(dim, Affine):
            if dim != length:
                raise InvalidInput(f"{where} is {length}.", why=f"The model takes {dim} there.")
            return
        symbol, size = self.symbols[dim.symbol], dim.size(length)
        if size is None or size < symbol.least or (symbol.most is not None and size > symbol.most):
            raise InvalidInput(f"{where} is {length}.", why=f"Allowed is {dim} with {symbol.name} {_in_steps(dim, symbol)}.")
        known, first = found.setdefault(symbol.name, (size, where))
        if known != size:
            why = f"{where} is {dim}, and {symbol.name} is {known} by {first.lower()}."
            raise InvalidInput(f"Symbolic dimension mismatch: {where.lower()} is {length}.", why=why, hint="Make the inputs agree.")

    def _check_guards(self, shapes: Sequence[Sequence[int]]) -> None:
        named = dict(zip(self.names, shapes, strict=True))
        for guard in self.guards:
            if not guard.holds(named):
                lengths = ", ".join(f"{name} {list(shape)}" for name, shape in named.items())
                raise InvalidInput("The exported program does not allow these shapes.", where=lengths, why=f"It requires {guard}.")


def _in_steps(dim: Affine, symbol: SymbolSpec) -> str:
    least = dim.at(symbol.least)
    lengths = f"{least} to {dim.at(symbol.most)}" if symbol.most is not None else f"at least {least}"
    return symbol.bound if (dim.plus, dim.times) == (0, 1) else f"{symbol.bound} (lengths {lengths})"
