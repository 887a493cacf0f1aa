"""Offsets taken in groups are those of the table, however they are loaded."""

import numpy as np
import pytest

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.offsets import Offsets
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import over, reads, writes
from tests.backends.cpu.kernel_call import At, Call, Kernels
from tests.machines import UNMASKED

SHAPES = [(index, unroll, ahead) for index in ("uint16", "int32") for unroll in (2, 4) for ahead in (True, False)]
LENGTH = 1 << 16


def gather(offsets: Offsets) -> Source:
    """y[j] = x[offset[j]] of whole groups, from group ``begin`` to group ``end``."""
    unroll = offsets.unroll

    def kernel(x, y, offset, begin, end):
        held = offsets.begin(offset, begin * unroll)
        for j in range(end - begin):
            _copy(offsets.take(held, offset, (begin + j) * unroll), x, y, (begin + j) * unroll, unroll)

    params = (Param("x", "act"), Param("y", "act"), Param("offset", "ptr", offsets.index))
    touches = (reads("x", over(-LENGTH, LENGTH)), writes("y", over("begin", "end", unroll), width=unroll))
    read = reads("offset", over("begin", "end", unroll), width=unroll + offsets.past)
    return script.kernel(UNMASKED.vector, f"gather_{offsets.index}_{unroll}{'_ahead' * offsets.ahead}", params, kernel, (*touches, read))


def _copy(taken, x, y, first, unroll):
    for g in range(unroll):
        T.buffer_store(y, x[taken(g)], [first + g])


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels([gather(Offsets(*shape)) for shape in SHAPES], UNMASKED)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3, 8])
def test_each_offset_is_taken_in_its_turn(kernels: Kernels, shape: tuple[str, int, bool], groups: int) -> None:
    rng = np.random.default_rng(groups)
    low = 0 if shape[0] == "uint16" else -LENGTH
    offset = rng.integers(low, LENGTH, groups * shape[1]).astype(shape[0])
    offset[:2] = low, LENGTH - 1
    x = rng.standard_normal(2 * LENGTH).astype(np.float32)
    call = Call(gather(Offsets(*shape)), {"x": At("x", LENGTH), "y": "y", "offset": offset})
    got = kernels.run([call], {"x": x, "y": np.full(len(offset), np.nan, np.float32)}, groups)["y"]
    np.testing.assert_array_equal(got, x[LENGTH + offset.astype(np.int64)])


def test_what_is_read_past_the_end() -> None:
    assert Offsets("uint16", 4, True).past == 8
    assert Offsets("uint16", 4, False).past == 0
