"""What threads take of a call: every row of every tile exactly once, and rows rather than tiles where that suits the layer."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.backends.base import Source
from sparsec.backends.cpu.partition import one_run, runs_of, settle, units_of
from sparsec.backends.plan import Buffer, Call, Group
from sparsec.lower.layouts import Geometry, Storage


def _call(kind: str, outputs: int, inputs: int, tiles: int, x: Buffer, y: Buffer) -> Call:
    runs = one_run(outputs)
    units, shares = units_of(tiles, runs, by_rows=False)
    rows = {"rows": outputs, "parts": 1} if kind != "depthwise" else {"channels": outputs}
    constants = {"runs": runs, "row_start": np.arange(outputs + 1, dtype=np.int32)}
    return Call(
        Source(kind, (), lambda: None), kind, kind, {"x": x, "y": y}, ("y",), constants, {**rows, **shares}, units, 0, 0,
        {"size": outputs * inputs},
    )  # fmt: skip


def _buffers(count: int) -> list[Buffer]:
    return [Buffer(str(i), Storage("halo", 8, Geometry(8, 8, 1))) for i in range(count)]


def _kinds(groups: list[Group]) -> list[str]:
    return ["rows" if g.calls[0].scalars["all_tiles"] else "tiles" for g in groups]


def _covered(call: Call, begin: int, end: int, rows: int, tiles: int) -> np.ndarray:
    """How often the units [begin, end) visit each (tile, row), by the definition of the parameters."""
    runs, count, all_tiles = call.constants["runs"], call.scalars["run_count"], call.scalars["all_tiles"]
    seen = np.zeros((tiles, rows), int)
    for unit in range(begin, end):
        where = slice(None) if all_tiles else unit // count
        seen[where, runs[unit % count] : runs[unit % count + 1]] += 1
    return seen


@given(
    work=st.lists(st.integers(0, 1000), min_size=1, max_size=200),
    most=st.integers(1, 40),
)
def test_runs_are_few_not_empty_and_even(work, most):
    runs = runs_of(np.array(work), most)
    assert runs[0] == 0
    assert runs[-1] == len(work)
    assert (np.diff(runs) > 0).all()
    assert len(runs) - 1 <= most
    cost = np.array(work) + 5.0
    heaviest = max(cost[a:b].sum() for a, b in itertools.pairwise(runs))
    assert heaviest <= cost.sum() / min(most, len(work)) + cost.max()


@given(
    kind=st.sampled_from(["dense", "sparse", "depthwise"]),
    outputs=st.integers(1, 50),
    inputs=st.integers(1, 50),
    tiles=st.integers(1, 40),
)
def test_every_row_of_every_tile_belongs_to_one_unit(kind, outputs, inputs, tiles):
    (group,) = settle([Group((_call(kind, outputs, inputs, tiles, *_buffers(2)),))])
    call = group.calls[0]
    assert (_covered(call, 0, call.units, outputs, tiles) == 1).all()
    if kind != "depthwise" and tiles == 1 and outputs > 1:
        assert call.units > 1, "one tile leaves the second thread without work"


def test_a_layer_that_expands_and_the_depthwise_layer_after_it_go_by_rows():
    a, b, c, d = _buffers(4)
    groups = [_call("sparse", 96, 16, 13, a, b), _call("depthwise", 96, 1, 13, b, c), _call("sparse", 24, 96, 13, c, d)]
    assert _kinds(settle([Group((call,)) for call in groups])) == ["rows", "rows", "tiles"]


def test_a_layer_of_equal_width_and_its_depthwise_layer_go_by_tiles():
    a, b, c = _buffers(3)
    groups = [Group((_call("sparse", 64, 64, 13, a, b),)), Group((_call("depthwise", 64, 1, 13, b, c),))]
    assert _kinds(settle(groups)) == ["tiles", "tiles"]


def test_calls_that_go_strip_by_strip_keep_whole_tiles():
    a, b, c = _buffers(3)
    pair = Group((_call("depthwise", 64, 1, 1, a, b), _call("sparse", 640, 64, 1, b, c)), strip=1)
    assert settle([pair]) == [pair]


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_depthwise_layers_of_few_tiles_go_by_rows(tiles):
    assert _kinds(settle([Group((_call("depthwise", 64, 1, tiles, *_buffers(2)),))])) == ["rows"]
