"""A number that follows a size known at run time: one spelling for axes, tokens of a value, counts of work, entries of tables."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Affine:
    """``scale * ceil((times * size + plus) / over)``, where ``size`` is that of the symbol."""

    symbol: str
    plus: int = 0
    times: int = 1
    over: int = 1
    scale: int = 1

    def at(self, size: int) -> int:
        """The number for a size of the symbol."""
        return self.scale * -(-(self.times * size + self.plus) // self.over)

    def size(self, number: int) -> int | None:
        """The symbol's size that gives this number, None if none does. ValueError where several may."""
        if (self.over, self.scale) != (1, 1):
            raise ValueError(f"{self} is divided or scaled")
        size, rest = divmod(number - self.plus, self.times)
        return None if rest else size

    def moved(self, by: int) -> Affine:
        """So many more. ValueError where this is divided or scaled already."""
        return replace(self._plain(), plus=self.plus + by)

    def ceil_div(self, over: int) -> Affine:
        """How many runs of ``over`` cover this many. ValueError where this is divided or scaled already."""
        return replace(self._plain(), over=over)

    def scaled(self, times: int) -> Affine:
        """This many, ``times`` times."""
        return replace(self, scale=self.scale * times)

    def _plain(self) -> Affine:
        if (self.over, self.scale) != (1, 1):
            raise ValueError(f"{self} is divided or scaled already")
        return self

    def __str__(self) -> str:
        times = f"{self.times}*" if self.times != 1 else ""
        inner = f"{times}{self.symbol}" + (f"{self.plus:+}" if self.plus else "")
        divided = f"ceil(({inner})/{self.over})" if self.over != 1 else inner
        return divided if self.scale == 1 else f"{self.scale}*({divided})"


class Count(int):
    """A number that follows a size known at run time (``follows``). As an int it is its largest value, for the size ``most``.

    Arithmetic on it gives plain ints: use ``ceil_div`` and ``scaled`` where the result must follow the size too.
    """

    follows: Affine
    most: int

    def __new__(cls, follows: Affine, most: int) -> Count:
        """``most``: the largest size."""
        made = super().__new__(cls, follows.at(most))
        made.follows, made.most = follows, most
        return made

    def ceil_div(self, over: int) -> Count:
        """How many runs of ``over`` cover this many. ValueError where it is divided or scaled already."""
        return Count(self.follows.ceil_div(over), self.most)

    def scaled(self, times: int) -> Count:
        """This many, ``times`` times."""
        return Count(self.follows.scaled(times), self.most)

    def at(self, size: int) -> int:
        """The value for a size."""
        return self.follows.at(size)


def scaled(value: int, times: int) -> int:
    """value * times, which follows a run-time size if ``value`` does."""
    return value.scaled(times) if isinstance(value, Count) else value * times
