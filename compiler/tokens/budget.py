"""The option `token_pruning`: how many tokens stay after which blocks, given outright or as a share of the work.

{"keep": 0.5, "after": [3, 6]}                a share of the tokens that are left, after blocks 3 and 6 (attentions, from 1)
{"keep": [0.7, 0.5], "after": [3, 6]}         one share per block
{"budget": 0.6}                               a share of all multiply-adds, spread evenly over all blocks but the last
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from numbers import Real
from typing import Any

from sparsec.errors import InvalidInput

STRATEGIES = ("prune", "merge")


@dataclass(frozen=True)
class TokenPruning:
    """Which tokens a compiled model may leave out.

    InvalidInput names the entry that is out of range.

    Attributes:
        keep: share of the tokens that stay, in (0, 1], one for all blocks or one per block of ``after``; of T tokens ceil(keep · T) stay,
            the CLS token among them.
        after: numbers of blocks (attentions in order, from 1), ascending.
        budget: instead of ``keep``, the share of all multiply-adds that may be spent; without ``after`` it is spread over all blocks but
            the last.
        strategy: "prune" drops tokens by the attention they receive (Kong et al. 2022; Liang et al. 2022), "merge" joins similar ones
            (Bolya et al. 2023).
        cls: whether token 0 judges the others; None: where the model reads single tokens.
        allow_shorter: a model that returns tokens may return fewer.
    """

    keep: float | tuple[float, ...] | None = None
    after: tuple[int, ...] | None = None
    budget: float | None = None
    strategy: str = "prune"
    cls: bool | None = None
    allow_shorter: bool = False

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.budget is None):
            raise _invalid("keep", self.keep, 'Give either "keep" with "after", or "budget".')
        if self.after is not None:
            object.__setattr__(self, "after", _blocks(self.after))
        if self.budget is not None:
            _check_share("budget", self.budget)
        else:
            object.__setattr__(self, "keep", self._keeps())
        if self.strategy not in STRATEGIES:
            raise _invalid("strategy", self.strategy, f"Use one of {', '.join(STRATEGIES)}.")
        if self.cls not in (None, True, False):
            raise _invalid("cls", self.cls, "It is True, False or None.")
        if not isinstance(self.allow_shorter, bool):
            raise _invalid("allow_shorter", self.allow_shorter, "It is True or False.")

    def _keeps(self) -> float | tuple[float, ...]:
        if self.after is None:
            raise _invalid("after", None, 'Name the blocks after which tokens go, such as "after": [3, 6].')
        if isinstance(self.keep, Sequence) and not isinstance(self.keep, str):
            if len(self.keep) != len(self.after):
                raise _invalid("keep", self.keep, f'"after" names {len(self.after)} blocks; give as many shares, or one for all.')
            for share in self.keep:
                _check_share("keep", share)
            return tuple(float(share) for share in self.keep)
        _check_share("keep", self.keep)
        return float(self.keep)  # type: ignore[arg-type]

    @classmethod
    def read(cls, option: object) -> "TokenPruning":
        """The option from a mapping or as it is. InvalidInput names an unknown entry and the nearest known one."""
        if isinstance(option, cls):
            return option
        if not isinstance(option, Mapping):
            raise InvalidInput(f"token_pruning is a mapping, got {option!r}.", hint='Write for instance {"keep": 0.5, "after": [3, 6]}.')
        known = [entry.name for entry in fields(cls)]
        for name in option:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known entries: {', '.join(known)}."
                raise InvalidInput(f"Unknown entry {name!r} of token_pruning.", hint=hint)
        return cls(**option)

    def blocks(self, count: int) -> tuple[int, ...]:
        """The numbers of the blocks after which tokens may go, of `count` blocks. InvalidInput where there are fewer."""
        if self.after is None:
            return tuple(range(1, count))
        if self.after and self.after[-1] > count:
            raise _invalid("after", list(self.after), f"The model has {count} blocks with attention.")
        return self.after

    def ratios(self) -> tuple[float, ...]:
        """The shares to keep, one per block of `after`; empty where a budget decides."""
        if self.keep is None or self.after is None:
            return ()
        return self.keep if isinstance(self.keep, tuple) else (self.keep,) * len(self.after)


def remaining(tokens: int, keep: float) -> int:
    """ceil(keep · tokens), with the share read as the decimal number it is written as: 0.55 of 20 is 11."""
    return math.ceil(Fraction(repr(keep)) * tokens)


def counts(tokens: int, ratios: Sequence[float], least: int = 1) -> tuple[int, ...]:
    """How many of `tokens` stay after each step, never fewer than `least`."""
    found = []
    for ratio in ratios:
        tokens = max(remaining(tokens, ratio), min(least, tokens))
        found.append(tokens)
    return tuple(found)


def spread(
    budget: float, tokens: int, steps: int, cost: Callable[[Sequence[int]], int], least: int = 1, floor: float = 0.0
) -> tuple[int, ...]:
    """Counts after `steps` equal cuts by the greatest share (of 1/4096) for which cost(counts) is at most budget · cost(no cut).

    `floor` is the smallest share that one cut may keep. InvalidInput where not even that is within the budget.
    """
    limit = budget * cost((tokens,) * steps)
    low, high = max(1, math.ceil(floor * 4096)), 4096
    fits = lambda share: cost(counts(tokens, (share / 4096,) * steps, least)) <= limit  # noqa: E731
    if not fits(low):
        lowest = cost(counts(tokens, (low / 4096,) * steps, least)) / cost((tokens,) * steps)
        raise _invalid("budget", budget, f"This model needs at least {lowest:.2f} with these blocks.")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return counts(tokens, (low / 4096,) * steps, least)


def _blocks(after: object) -> tuple[int, ...]:
    entries: list[Any] = list(after) if isinstance(after, Sequence) and not isinstance(after, str) else [after]
    whole = all(isinstance(entry, int) and not isinstance(entry, bool) and entry >= 1 for entry in entries)
    if not entries or not whole or entries != sorted(set(entries)):
        raise _invalid("after", after, "Block numbers are ascending integers from 1.")
    return tuple(entries)


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise _invalid(name, value, "A share is a number greater than 0 and at most 1.")


def _invalid(name: str, value: Any, why: str) -> InvalidInput:
    return InvalidInput(f"token_pruning[{name!r}] cannot be {value!r}.", why=why)
