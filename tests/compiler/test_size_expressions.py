"""Sizes in files: what torch writes passes, what runs, takes long or grows without bound does not."""

from collections.abc import Callable

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import CeilToInt, FloorDiv, IntTrueDiv, Max, Min, Mod, PythonMod

from sparsec.doors.from_torch.size_expressions import refused_size

NAMES = [sympy.Symbol(name, positive=True, integer=True) for name in ("s0", "s77")]
LEAVES = st.one_of(st.sampled_from(NAMES), st.integers(1, 2**31).map(sympy.Integer))
SUMS = [sympy.Add, sympy.Mul, Max, Min, lambda a, b: sympy.Pow(a, 2) + b, lambda a, b: a - b]
QUOTIENTS = [FloorDiv, Mod, PythonMod, lambda a, b: CeilToInt(IntTrueDiv(a, b)), lambda a, b: CeilToInt(a * sympy.Rational(3, 7) + b)]


def combined(parts: st.SearchStrategy) -> st.SearchStrategy:
    made = st.builds(lambda function, a, b: function(a, b), st.sampled_from(SUMS[:-2]), parts, parts)
    return made | st.builds(lambda function, a, b: function(a, b), st.sampled_from(QUOTIENTS), parts, LEAVES).filter(lambda size: size != 0)


@given(st.recursive(LEAVES, combined, max_leaves=8), LEAVES, st.sampled_from([*SUMS, sympy.Eq, sympy.Le]))
def test_what_torch_writes_passes(size: sympy.Expr, other: sympy.Expr, function: Callable[..., sympy.Basic]) -> None:
    written = sympy.srepr(function(size, other))
    assert refused_size(written) == "", written


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "1e999999999",
        "Mul(s77, 1_0.e+99_99)",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Pow(Pow(Integer(9), Integer(64)), Integer(64)), Integer(64))",
        "Mul(" + ", ".join(["Integer(" + "9" * 1000 + ")"] * 10) + ")",
        "1 << 10**9",
        "LShift(Integer(1), Integer(1000000000))",
        "LShift(Integer(1), Symbol('s0'))",
        "Rational(1, 0)",
        "Pow(Integer(2), Rational(1, 0))",
        "Integer('9e9999')",
        "+".join(["s0"] * 20_000),
        "(" * 10_000 + ")" * 10_000,
        "-" * 19_000 + "1",
        "__import__('os')",
        "Integer.__class__",
        "[1 for _ in range(9)]",
        "(lambda: 1)()",
        "factorial(10**9)",
        "s0 if s0 else s0",
        "Symbol('s0', __x=eval('1'))",
        "Symbol('__import__(\"os\")')",
        "",
    ],
    ids=range(24),
)
def test_what_does_not_end_or_runs_is_refused(text: str) -> None:
    assert refused_size(text) or text == "Rational(1, 0)"


def test_sizes_of_an_exported_program_pass() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool1d(torch.cat([x, x[:, :, 1:]], 2), 3, 2, ceil_mode=True).repeat(1, x.shape[0], 1)

    program = torch.export.export(Model(), (torch.ones(3, 4, 20),), dynamic_shapes=({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},))
    sizes = [s for node in program.graph.nodes if isinstance(v := node.meta.get("val"), torch.Tensor) for s in v.shape]
    texts = [sympy.srepr(size.node.expr) for size in sizes if isinstance(size, torch.SymInt)]
    assert len(texts) > 2
    assert not [refused_size(text) for text in texts if refused_size(text)]
