"""Layer normalisation of tiled tokens against float64, on each machine."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine
from sparsec.backends.cpu.layer_norm import layer_norm
from sparsec.backends.cpu.tokens import token_groups
from tests.backends.cpu.kernel_call import Kernels
from tests.backends.cpu.token_call import Tokens, from_tiled, garbage, reference, run, spec_of, task_of, to_tiled
from tests.machines import MACHINES, lanes_of

TILES = (64, 32)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Machine, Kernels]:
    lanes = lanes_of(request.param)
    return request.param, Kernels([layer_norm(request.param.vector, tile // lanes) for tile in TILES], request.param)


def normalised(built, x, gamma=None, beta=None, *, eps=1e-5, tokens=None, threads=1, in_place=False) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel made of x [T, F], and what it should have."""
    (machine, kernels), tokens, spec = built, tokens or Tokens(len(x)), spec_of("layer_norm", eps=eps)
    storage = tokens.tiled(x.shape[1])
    ((call,),) = (g.calls for g in token_groups(task_of(spec, storage, storage, gamma, beta), (), machine))
    memory = to_tiled(x, storage)
    if in_place:
        call = dataclasses.replace(call, buffers={"x": call.buffers["x"], "y": call.buffers["x"]})
    got = run(kernels, call, memory, memory if in_place else garbage(storage), tokens.count, threads)
    return from_tiled(got, len(x)), reference(spec, x, gamma, beta)


@settings(max_examples=60)
@given(
    count=st.integers(1, 150),
    spare=st.sampled_from([0, 1, 70]),
    features=st.integers(1, 200),
    tile=st.sampled_from(TILES),
    scales=st.tuples(st.booleans(), st.booleans()),
    threads=st.integers(1, 2),
)
def test_any_number_of_tokens_and_features(built, count, spare, features, tile, scales, threads) -> None:
    rng = np.random.default_rng(features)
    x = (rng.standard_normal((count, features)) * 3 + 1).astype(np.float32)
    gamma, beta = (rng.standard_normal(features).astype(np.float32) if given else None for given in scales)
    tokens = Tokens(count, count + spare if spare else 0, tile)
    got, want = normalised(built, x, gamma, beta, tokens=tokens, threads=threads)
    # One feature, or few alike, leave a variance of rounding errors, which 1 / sqrt magnifies.
    spread = np.maximum(x.astype(np.float64).std(1, keepdims=True), 0.1)
    assert (abs(got - want) <= 4e-6 * np.maximum(1, abs(x).max() / spread)).all()


@pytest.mark.parametrize("mean", [0, 10, 1000])
def test_a_large_mean_does_not_cancel(built, mean) -> None:
    x = (np.random.default_rng(0).standard_normal((70, 768)) + mean).astype(np.float32)
    got, want = normalised(built, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 if mean < 100 else 5e-5)


def test_in_place(built) -> None:
    got, want = normalised(built, np.random.default_rng(1).standard_normal((67, 33)).astype(np.float32), in_place=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)


def test_nan_stays_in_its_token_and_equal_features_become_beta(built) -> None:
    x = np.random.default_rng(2).standard_normal((40, 24)).astype(np.float32)
    x[7, 3], x[11] = np.nan, 4.0
    beta = np.arange(24, dtype=np.float32)
    got, want = normalised(built, x, None, beta, eps=1e-12)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got[11], beta)
    assert np.isnan(got[7]).all() and not np.isnan(np.delete(got, 7, 0)).any()
