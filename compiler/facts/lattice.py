"""What is proved of a tensor: a lattice from "nothing known" down to "all zero", with ranges and constant channels.

All zero facts assume finite values (0 · inf is no zero); of a tensor with infinities or NaN nothing is known.
Dimension 0 is the outputs of a weight, dimension 1 the inputs of a weight and the channels of an activation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from sparsec.facts import sparsity

MEASURED_GROUPS = ((1, 2), (2, 4), (1, 4), (2, 8), (4, 8))
MEASURED_BLOCKS = ((4, 1), (8, 1), (16, 1), (32, 1), (32, 32))


class Groups(NamedTuple):
    """At most `n` nonzeros in each group of `m` consecutive indices of dimension 1; a last group may be shorter."""

    n: int
    m: int


class Blocks(NamedTuple):
    """At most the share `density` of the blocks of rows x columns holds a nonzero.

    The blocks tile the matrix [dimension 0, all others flattened]; those at the edges may be smaller.
    """

    rows: int
    columns: int
    density: float


@dataclass(frozen=True)
class Fact:
    """A conjunction of proved properties; the defaults say nothing.

    density: at most this share of the elements is nonzero (0: all zero). groups, blocks: see there, at most one per
    m and per block shape. dead: per dimension, indices at which all is zero. constants: nonzero values that fill
    whole channels (dimension 1). pattern: the nonzeros lie exactly where `sparsity.digest` says, or nowhere. low, high:
    no element is below or above. `reason` says why nothing is known and is not part of the fact.
    """

    density: float = 1.0
    groups: tuple[Groups, ...] = ()
    blocks: tuple[Blocks, ...] = ()
    dead: tuple[tuple[int, frozenset[int]], ...] = ()
    constants: tuple[tuple[int, float], ...] = ()
    pattern: str | None = None
    low: float = -math.inf
    high: float = math.inf
    reason: str = field(default="", compare=False)

    @property
    def is_zero(self) -> bool:
        """Whether every element is proved zero."""
        return self.density == 0

    @property
    def span(self) -> tuple[float, float]:
        """The least and greatest value an element may have."""
        return (0.0, 0.0) if self.is_zero else (self.low, self.high)

    def dead_along(self, dim: int) -> frozenset[int]:
        """The indices of a dimension proved zero; of an all-zero tensor only those recorded."""
        return dict(self.dead).get(dim, frozenset())

    def group_bound(self, m: int) -> int:
        """The most nonzeros an aligned group of `m` may hold.

        A group of m overlaps groups of m'; each overlap holds at most min(n', its length). The worst alignment
        repeats with period lcm(m, m').
        """
        if self.is_zero:
            return 0
        return min([m, *(_worst_overlap(known, m) for known in self.groups)])

    def block_bound(self, rows: int, columns: int) -> float:
        """The greatest share of blocks of this shape that may hold a nonzero."""
        if self.is_zero:
            return 0.0
        known = {(block.rows, block.columns): block.density for block in self.blocks}
        known[1, 1] = min(self.density, known.get((1, 1), 1.0))
        return known.get((rows, columns), 1.0)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the fact is true of a real tensor; what it says of rows that the tensor has not is."""
        mask = tensor != 0
        return (
            sparsity.share(mask) <= self.density
            and self._range_holds(tensor)
            and all(sparsity.group_bound(mask, m) <= n for n, m in self.groups)
            and all(sparsity.share(sparsity.block_mask(mask, r, c)) <= share for r, c, share in self.blocks)
            and all({i for i in indices if i < mask.shape[dim]} <= sparsity.dead(mask, dim) for dim, indices in self.dead)
            and all(bool((tensor.select(1, channel) == value).all()) for channel, value in self.constants)
            and (self.pattern is None or not mask.any() or sparsity.digest(mask) == self.pattern)
        )

    def _range_holds(self, tensor: Tensor) -> bool:
        bounded = self.low > -math.inf or self.high < math.inf
        return not bounded or bool(((tensor >= self.low) & (tensor <= self.high)).all())

    @classmethod
    def of(cls, tensor: Tensor) -> "Fact":
        """The strongest fact measured of a constant; 25 million values take well under a second."""
        if not tensor.numel():
            return cls(reason="empty")
        if tensor.is_complex():
            return cls(reason="complex")
        low, high = (float(bound) for bound in tensor.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            return cls(reason="non-finite")
        if low == high == 0:
            return cls(density=0.0)
        mask = tensor != 0
        measured = {} if mask.dim() < 2 else _matrix_facts(mask)
        return cls(density=sparsity.share(mask), low=low, high=high, **measured)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict of what differs from nothing known."""
        plain = {
            "density": self.density,
            "groups": [list(entry) for entry in self.groups],
            "blocks": [list(entry) for entry in self.blocks],
            "dead": [[dim, sorted(indices)] for dim, indices in self.dead],
            "constants": [list(entry) for entry in self.constants],
            "pattern": self.pattern,
            "low": None if self.low == -math.inf else self.low,
            "high": None if self.high == math.inf else self.high,
            "reason": self.reason,
        }
        return {key: value for key, value in plain.items() if value not in (None, [], "") and (key, value) != _FULL}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Fact":
        """The fact that `to_json` described."""
        return cls(
            density=plain.get("density", 1.0),
            groups=tuple(Groups(*entry) for entry in plain.get("groups", ())),
            blocks=tuple(Blocks(*entry) for entry in plain.get("blocks", ())),
            dead=tuple((dim, frozenset(indices)) for dim, indices in plain.get("dead", ())),
            constants=tuple((channel, value) for channel, value in plain.get("constants", ())),
            pattern=plain.get("pattern"),
            low=plain.get("low", -math.inf),
            high=plain.get("high", math.inf),
            reason=plain.get("reason", ""),
        )

    def __str__(self) -> str:
        if self.is_zero:
            return "all zero"
        parts = [f"{self.density:.1%} nonzero"] if self.density < 1 else []
        parts += [f"{n}:{m}" for n, m in self.groups]
        parts += [f"{r}x{c} blocks {share:.1%}" for r, c, share in self.blocks]
        parts += [f"{len(indices)} dead along {dim}" for dim, indices in self.dead]
        parts += [f"{len(self.constants)} constant channels"] if self.constants else []
        return ", ".join(parts) or f"nothing known{f' ({self.reason})' if self.reason else ''}"


_FULL = ("density", 1.0)
NOTHING = Fact()
ZERO = Fact(density=0.0)


def implies(a: Fact, b: Fact) -> bool:
    """Whether every tensor with `a` has `b`; False where that cannot be proved from the facts alone."""
    return (
        a.density <= b.density
        and all(a.group_bound(m) <= n for n, m in b.groups)
        and all(a.block_bound(r, c) <= share for r, c, share in b.blocks)
        and (a.is_zero or all(indices <= a.dead_along(dim) for dim, indices in b.dead))
        and set(b.constants) <= set(a.constants)
        and (b.pattern is None or a.is_zero or a.pattern == b.pattern)
        and a.span[0] >= b.low
        and a.span[1] <= b.high
    )


def join(a: Fact, b: Fact) -> Fact:
    """The strongest fact known to be true of whatever has `a` or has `b`; commutative, implied by both."""
    if a.is_zero and b.is_zero:
        return ZERO
    sizes = sorted({m for _, m in (*a.groups, *b.groups)})
    shapes = sorted({(r, c) for r, c, _ in (*a.blocks, *b.blocks)})
    groups = [Groups(max(a.group_bound(m), b.group_bound(m)), m) for m in sizes]
    blocks = [Blocks(r, c, max(a.block_bound(r, c), b.block_bound(r, c))) for r, c in shapes]
    return Fact(
        density=max(a.density, b.density),
        groups=tuple(entry for entry in groups if entry.n < entry.m),
        blocks=tuple(entry for entry in blocks if entry.density < 1),
        dead=_joined_dead(a, b),
        constants=tuple(sorted(set(a.constants) & set(b.constants))),
        pattern=a.pattern if a.pattern == b.pattern or b.is_zero else b.pattern if a.is_zero else None,
        low=min(a.span[0], b.span[0]),
        high=max(a.span[1], b.span[1]),
    )


def meet(a: Fact, b: Fact) -> Fact:
    """Both facts at once, for two proofs about the same tensor."""
    if a.is_zero or b.is_zero:
        return ZERO
    sizes = sorted({m for _, m in (*a.groups, *b.groups)})
    shapes = sorted({(r, c) for r, c, _ in (*a.blocks, *b.blocks)})
    dims = sorted({dim for dim, _ in (*a.dead, *b.dead)})
    return Fact(
        density=min(a.density, b.density),
        groups=tuple(Groups(min(a.group_bound(m), b.group_bound(m)), m) for m in sizes),
        blocks=tuple(Blocks(r, c, min(a.block_bound(r, c), b.block_bound(r, c))) for r, c in shapes),
        dead=tuple((dim, a.dead_along(dim) | b.dead_along(dim)) for dim in dims),
        constants=tuple(sorted(set(a.constants) | set(b.constants))),
        pattern=a.pattern or b.pattern,
        low=max(a.low, b.low),
        high=min(a.high, b.high),
        reason=a.reason or b.reason,
    )


def _joined_dead(a: Fact, b: Fact) -> tuple[tuple[int, frozenset[int]], ...]:
    if a.is_zero or b.is_zero:
        return b.dead if a.is_zero else a.dead
    both = [(dim, indices & b.dead_along(dim)) for dim, indices in a.dead]
    return tuple((dim, indices) for dim, indices in both if indices)


def _worst_overlap(known: Groups, m: int) -> int:
    """The most nonzeros in [j·m, (j+1)·m) over all j, from at most n in each [i·m', (i+1)·m')."""
    worst = 0
    for start in range(0, math.lcm(m, known.m), m):
        covered = range(start // known.m, -(-(start + m) // known.m))
        overlaps = [min(start + m, (i + 1) * known.m) - max(start, i * known.m) for i in covered]
        worst = max(worst, sum(min(known.n, overlap) for overlap in overlaps))
    return worst


def _matrix_facts(mask: Tensor) -> dict[str, Any]:
    found = sorted((Groups(n, m) for n, m in MEASURED_GROUPS if sparsity.has_groups(mask, n, m)), reverse=True)
    tightest = {entry.m: entry for entry in found}
    blocks = [Blocks(r, c, sparsity.share(sparsity.block_mask(mask, r, c))) for r, c in MEASURED_BLOCKS]
    dead = [(dim, sparsity.dead(mask, dim)) for dim in (0, 1)]
    return {
        "groups": tuple(tightest[m] for m in sorted(tightest)),
        "blocks": tuple(entry for entry in sorted(blocks) if entry.density < 1),
        "dead": tuple((dim, indices) for dim, indices in dead if indices),
        "pattern": sparsity.digest(mask),
    }
