"""The shapes of others' sparse microkernels for ARM, in our own words: what a nonzero and a row of outputs take of instructions.

A kernel keeps ``pixels`` x ``rows`` sums. A nonzero (a block of ``rows`` outputs x 1 input) loads its pixels, its weights and how far the
next input is away, multiplies by lane and moves its pointer. What sums and operands take of registers beyond 32 goes to the stack: as many
sums as clang 19 leaves there of such a loop in intrinsics (-march=armv8-a, where they are fewest). What a row takes: bias, bounds, stores.

XNNPACK's inputs are channel-major, and the pixels that its widest panel leaves go to narrower ones, down to a single pixel. MNN packs its
input in runs of 16 pixels first, which is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: Vector registers, the first that sums are in, and that which those on the stack pass through.
_REGISTERS, _FIRST, _SPILLED = 32, 4, 3
Cycles = Callable[[tuple[str, ...]], float]


@dataclass(frozen=True)
class Shape:
    """A kernel of ``rows`` outputs; ``widths``: pixels of its panels, the widest first.

    ``ahead``: wide panels load what a nonzero needs while they multiply by the one before.
    """

    name: str
    rows: int
    widths: tuple[int, ...]
    ahead: bool = False

    def panels(self, pixels: int) -> dict[int, int]:
        """How many panels of each width cover so many pixels."""
        found = {}
        for width in self.widths:
            found[width], pixels = divmod(pixels, width)
        return found

    def layer(self, pixels: int, nonzeros: int, groups: int, cost: Cycles) -> float:
        """What a layer costs, by what a turn of a loop costs; ``groups`` of ``rows`` outputs with ``nonzeros`` of all of them."""
        return sum(
            count * (nonzeros * cost(self.turn(width)) + groups * cost(self.visit(width)))
            for width, count in self.panels(pixels).items()
            if count
        )

    def turn(self, pixels: int) -> tuple[str, ...]:
        """A nonzero's instructions."""
        pairs, step, move = self._pairs(pixels), ["ldrsw x9, [x2], #4"], ["add x0, x0, x9"]
        loads = [_moved("ld", "x0", [self._input(v, pixels) for v in pair], pixels, pair[0]) for pair in pairs]
        products = [[line for r in range(self.rows) for v in pair for line in self._product(pixels, r, v)] for pair in pairs]
        end = ["subs x3, x3, #1", "b.ne .L0"]
        if self.ahead and pixels >= 16:
            return (*_flat(products), *move, *step, self._weights, *loads, *end)
        if self._crowded(pixels):
            return (*step, self._weights, *_flat([line, *of] for line, of in zip(loads, products, strict=True)), *move, *end)
        return (*step, *loads, *move, self._weights, *_flat(products), *end)

    def visit(self, pixels: int) -> tuple[str, ...]:
        """What a group of outputs takes around its nonzeros."""
        lines, vectors = ["ldr w3, [x4], #4"], range(_vectors(pixels))
        for r in range(self.rows):
            lines.append(f"ld1r {{v{self._sum(pixels, r, 0)}.4s}}, [x1], #4")
            lines += [f"mov v{self._sum(pixels, r, v)}.16b, v{self._sum(pixels, r, 0)}.16b" for v in vectors[1:]]
        lines += [f"str q{_SPILLED}, [sp, #{16 * n}]" for n in range(self.spilled(pixels))]
        lines.append("cbz w3, .L1")
        for r in range(self.rows):
            for register in (self._sum(pixels, r, v) for v in vectors):
                lines += [f"ldr q{register}, [sp]"] * (register == _SPILLED)
                lines += [f"{name} v{register}.4s, v{register}.4s, v{bound}.4s" for name, bound in (("fmin", 0), ("fmax", 1))]
            lines += [_moved("st", "x5", [self._sum(pixels, r, v) for v in pair], pixels, pair[0]) for pair in self._pairs(pixels)]
            lines.append("add x5, x5, x6")
        return (*lines, "subs x7, x7, #1", "b.ne .L0")

    def spilled(self, pixels: int) -> int:
        """Sums that do not stay in registers: beside them there are weights, two of pixels, and what comes from the stack."""
        return max(0, self.rows * _vectors(pixels) + _FIRST - _REGISTERS)

    @property
    def _weights(self) -> str:
        return "ld1r {v0.4s}, [x1], #4" if self.rows == 1 else f"ldr {'d' if self.rows == 2 else 'q'}0, [x1], #{4 * self.rows}"

    def _product(self, pixels: int, row: int, vector: int) -> list[str]:
        lanes, total = "2s" if pixels < 4 else "4s", self._sum(pixels, row, vector)
        factor = f"v0.{lanes}" if self.rows == 1 else f"v0.s[{row}]"
        multiply = f"fmla v{total}.{lanes}, v{self._input(vector, pixels)}.{lanes}, {factor}"
        place = f"[sp, #{16 * (row * _vectors(pixels) + vector)}]"
        return [f"ldr q{total}, {place}", multiply, f"str q{total}, {place}"] if total == _SPILLED else [multiply]

    def _pairs(self, pixels: int) -> list[range]:
        """The vectors of a row that are loaded or stored at once."""
        return [range(v, min(v + 2, _vectors(pixels))) for v in range(0, _vectors(pixels), 2)]

    def _crowded(self, pixels: int) -> bool:
        return (self.rows + 1) * _vectors(pixels) + _FIRST > _REGISTERS

    def _sum(self, pixels: int, row: int, vector: int) -> int:
        register = _FIRST + row * _vectors(pixels) + vector
        return register if register < _REGISTERS else _SPILLED

    def _input(self, vector: int, pixels: int) -> int:
        return 1 + vector % 2 if self._crowded(pixels) else _FIRST + self.rows * _vectors(pixels) + vector


def _vectors(pixels: int) -> int:
    return max(1, pixels // 4)


def _moved(way: str, base: str, registers: list[int], pixels: int, first: int) -> str:
    """A load or a store of one register, or of two side by side."""
    letter = {1: "s", 2: "d"}.get(pixels, "q")
    names = ", ".join(f"{letter}{register}" for register in registers)
    return f"{way}{'p' if len(registers) == 2 else 'r'} {names}, [{base}, #{16 * first}]"


def _flat(parts: Iterable[Sequence[str]]) -> list[str]:
    return [line for part in parts for line in part]


POWERS = (32, 16, 8, 4, 2, 1)
#: By the outputs that share an input.
SHAPES = {
    1: (Shape("XNNPACK 32x1", 1, POWERS, ahead=True),),
    2: (Shape("XNNPACK 32x2", 2, POWERS),),
    4: (Shape("XNNPACK 32x4", 4, POWERS), Shape("MNN 16x4", 4, POWERS[1:])),
}
