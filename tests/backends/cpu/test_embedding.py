"""Table rows into tiled tokens: exact, and inside the table whatever the ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine
from sparsec.backends.cpu.embedding import DTYPES, embedding
from sparsec.backends.cpu.tokens import token_groups
from tests.backends.cpu.kernel_call import Kernels
from tests.backends.cpu.token_call import Tokens, from_tiled, garbage, reference, run, spec_of, task_of
from tests.machines import MACHINES, WIDEST, lanes_of

TILES = (64, 32)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Machine, Kernels]:
    vector, lanes = request.param.vector, lanes_of(request.param)
    return request.param, Kernels([embedding(vector, tile // lanes, d) for tile in TILES for d in DTYPES], request.param)


def looked_up(built, ids, table, tokens, threads=1) -> np.ndarray:
    machine, kernels = built
    target = tokens.tiled(table.shape[1])
    task = task_of(spec_of("embedding"), tokens.rows(dtype=ids.dtype.name), target, table)
    ((call,),) = (g.calls for g in token_groups(task, (), machine))
    assert call.limits == {"x": len(table)}
    return from_tiled(run(kernels, call, ids, garbage(target), tokens.count, threads), len(ids))


@settings(max_examples=60)
@given(
    count=st.integers(1, 150),
    spare=st.sampled_from([0, 1, 70]),
    features=st.integers(1, 80),
    rows=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
    tile=st.sampled_from(TILES),
    threads=st.integers(1, 2),
)
def test_rows_of_the_table(built, count, spare, features, rows, dtype, tile, threads) -> None:
    rng = np.random.default_rng(features)
    table = rng.standard_normal((rows, features)).astype(np.float32)
    ids = rng.integers(0, rows, count).astype(dtype)
    got = looked_up(built, ids, table, Tokens(count, count + spare if spare else 0, tile), threads)
    np.testing.assert_array_equal(got, reference(spec_of("embedding"), ids, table))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_outside_the_table_read_its_ends(built, dtype) -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    limits = np.iinfo(dtype)
    ids = np.array([0, -1, 4, 3, limits.min, limits.max], dtype)
    np.testing.assert_array_equal(looked_up(built, ids, table, Tokens(6)), table[[0, 0, 3, 3, 0, 3]])


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="ids of dtype 'float32'"):
        embedding(WIDEST.vector, 4, "float32")
