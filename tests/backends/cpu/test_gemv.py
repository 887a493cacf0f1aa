"""Matrix-vector kernels against float64, on each machine."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Source
from sparsec.backends.cpu.expr import ACTIVATIONS
from sparsec.backends.cpu.gemv import gemv_blocks, gemv_rows, index_dtype, pack_blocks, pack_rows
from sparsec.backends.cpu.gemv_windows import gemv_windows, pack_windows
from sparsec.backends.vector import Vector
from tests.backends.cpu.kernel_call import Call, Kernels
from tests.backends.cpu.panel_call import ACTIVATIONS as EXACT
from tests.machines import MACHINES

VECTORS = (1, 4)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Vector, Kernels]:
    vector = request.param.vector
    scattered = (gemv_rows, gemv_windows) if vector.permute else (gemv_rows,)
    sources = [gemv_blocks(vector, v, i, "clamp", r) for v in VECTORS for i in ("uint16", "int32") for r in (False, True)]
    sources += [f(vector, i, "clamp", r) for f in scattered for i in ("uint16", "int32") for r in (False, True)]
    sources += [gemv_blocks(vector, 4, "uint16", a, True) for a in ACTIVATIONS]
    sources += [f(vector, "uint16", a, True) for f in scattered for a in ACTIVATIONS]
    return vector, Kernels(sources, request.param)


def kernel(
    vector: Vector, family: str, w: np.ndarray, bias: np.ndarray | None, activation: str, residual: bool
) -> tuple[Source, dict[str, Any]]:
    """A code variant with its constants: "rows", "windows", "dense<vectors>" or "blocks<vectors>"."""
    index, lanes = index_dtype(w.shape[1]), vector.lanes
    if family == "windows":
        return gemv_windows(vector, index, activation, residual), pack_windows(w, bias, lanes)
    if family == "rows":
        return gemv_rows(vector, index, activation, residual), pack_rows(w, bias, lanes)
    vectors = int(family[-1])
    return gemv_blocks(vector, vectors, index, activation, residual), pack_blocks(w, bias, lanes * vectors, family.startswith("dense"))


def check(built: Any, family: str, w: np.ndarray, x: np.ndarray, activation: str = "clamp", threads: int = 1, extra: bool = True) -> None:
    vector, kernels = built
    if family == "windows" and vector.permute is None:
        pytest.skip("no permute by number")
    n = len(w)
    rng = np.random.default_rng(n)
    bias, residual = (rng.standard_normal((2, n)).astype(np.float32)) if extra else (None, None)
    lo, hi = (-0.5, 1.5) if activation == "clamp" and extra else (-np.inf, np.inf)
    source, constants = kernel(vector, family, w, bias, activation, extra)
    arguments = {"x": "x", "y": "y", "residual": "residual", "outputs": n, "lo": lo, "hi": hi} | constants
    memory = {"x": x, "y": np.full(n, np.nan, np.float32), "residual": residual if extra else np.zeros(1, np.float32)}
    units = -(-n // vector.lanes) if family == "rows" else len(constants["row_start"]) - 1
    got = kernels.run([Call(source, arguments)], memory, units, threads=threads)["y"]
    total, size = w.astype(np.float64) @ x, np.abs(w).astype(np.float64) @ np.abs(x)
    if extra:
        total, size = total + bias + residual, size + np.abs(bias) + np.abs(residual)
    want = EXACT[activation](total, lo, hi)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert (np.abs(got - want)[~np.isnan(want)] <= (3e-6 * (1 + size))[~np.isnan(want)]).all()


def sparse(rng: np.random.Generator, n: int, k: int, density: float) -> np.ndarray:
    return (rng.standard_normal((n, k)) * (rng.random((n, k)) < density)).astype(np.float32)


FAMILIES = ("rows", "windows", *(f"{kind}{v}" for kind in ("dense", "blocks") for v in VECTORS))


@settings(max_examples=60)
@given(
    family=st.sampled_from(FAMILIES),
    n=st.integers(1, 150),
    k=st.integers(1, 150),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    threads=st.integers(1, 2),
    extra=st.booleans(),
)
@pytest.mark.slow
def test_any_size_and_density(built, family, n, k, density, threads, extra) -> None:
    vector, _ = built
    assume(family != "windows" or (vector.permute and k >= 2 * vector.lanes))
    rng = np.random.default_rng(n * 151 + k)
    check(built, family, sparse(rng, n, k, density), rng.standard_normal(k).astype(np.float32), threads=threads, extra=extra)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [7, 10, 1000])
@pytest.mark.slow
def test_classifiers(built: Any, family: str, n: int) -> None:
    rng = np.random.default_rng(n)
    check(built, family, sparse(rng, n, 1024, 0.1), rng.standard_normal(1024).astype(np.float32))


@pytest.mark.parametrize("family", ["rows", "windows", "dense4", "blocks4"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_every_activation(built: Any, family: str, activation: str) -> None:
    rng = np.random.default_rng(1)
    check(built, family, sparse(rng, 45, 40, 0.5), (4 * rng.standard_normal(40)).astype(np.float32), activation)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_more_inputs_than_a_short_index_holds(built: Any, family: str) -> None:
    rng = np.random.default_rng(2)
    check(built, family, sparse(rng, 3, 70_000, 0.01), rng.standard_normal(70_000).astype(np.float32))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_whole_blocks_of_zeros(built: Any, family: str) -> None:
    rng = np.random.default_rng(3)
    w = sparse(rng, 300, 64, 1.0)
    w[64:200], w[:, 10:40] = 0, 0
    check(built, family, w, rng.standard_normal(64).astype(np.float32))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_nan_reaches_every_output_that_uses_it(built: Any, family: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal(33).astype(np.float32)
    x[11] = np.nan
    check(built, family, sparse(rng, 20, 33, 1.0), x)


def test_blocks_keep_only_inputs_in_use() -> None:
    w = np.zeros((5, 6), np.float32)
    w[0, 2], w[4, 5] = 1, 2
    packed = pack_blocks(w, None, 4)
    assert packed["index"].tolist() == [2, 5] and packed["row_start"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(packed["value"], [[1, 0, 0, 0], [2, 0, 0, 0]])
    assert pack_blocks(w, None, 4, dense=True)["row_start"].tolist() == [0, 6, 12]


def test_windows_wider_than_the_input_are_refused() -> None:
    with pytest.raises(ValueError, match="use gemv_rows"):
        pack_windows(np.ones((4, 31), np.float32), None, 16)


def test_windows_take_each_nonzero_once_and_stay_inside_the_input() -> None:
    rng = np.random.default_rng(5)
    w = sparse(rng, 37, 45, 0.3)
    packed = pack_windows(w, None, 8)
    rebuilt = np.zeros((40, 45), np.float32)
    unit = np.repeat(np.arange(5), np.diff(packed["row_start"]))
    lane = np.arange(8)
    column = packed["base"].astype(int)[:, None] + packed["pick"]
    assert packed["base"].max() + 16 <= 45 and packed["pick"].max() < 16 and (np.diff(packed["row_start"]) % 2 == 0).all()
    np.add.at(rebuilt, (unit[:, None] * 8 + lane, column), packed["value"])
    np.testing.assert_array_equal(rebuilt[:37], w)
    assert np.count_nonzero(packed["value"]) == np.count_nonzero(w)
