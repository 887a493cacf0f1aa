"""Explanations: JSON round trip, and tables that say what happened within 120 columns, without torch."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.run.explanation import WIDTH, Explanation, Layer

SPARSE = Layer(
    "features_3_pointwise_conv", "conv2d", (128, 64, 1, 1), 0.1, "unstructured", "spmm_l16_v4_uint16_clamp", "spmm", 41.25, 55.0, "won"
)
STAYED = Layer("stem", "conv2d", (32, 3, 3, 3), 0.97, "dense", "stem_l16", "dense", 90.0, 100.0, "97% of its weights are nonzero", 0.4)
NEVER = Layer("classifier", "linear", (10, 64), 1.0, "dense", "gemv", "dense", reason="no sparse kernel offers 10 rows")
POOL = Layer("pool", "adaptive_avg_pool2d", (1, 64, 1, 1), kernel="pool_mean", kind="pool", time_us=3.0)
FULL = Explanation(
    (SPARSE, STAYED, NEVER, POOL),
    misses=(("fuse_epilogue", "add_1", "its other operand has two users"), ("fuse_epilogue", "add_2", "its other operand has two users")),
    uncovered=(("topk", "no kernel for aten.topk"),),
    notes=("zero facts assume finite inputs",),
)

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=40)
numbers = st.none() | st.floats(0, 1e6)
layers = st.builds(
    Layer,
    texts,
    texts,
    st.lists(st.integers(0, 4096), max_size=4).map(tuple),
    numbers,
    texts,
    texts,
    texts,
    numbers,
    numbers,
    texts,
    numbers,
    texts,
)
explanations = st.builds(
    Explanation,
    st.lists(layers, max_size=4).map(tuple),
    st.lists(st.tuples(texts, texts, texts), max_size=3).map(tuple),
    st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    st.lists(texts, max_size=2).map(tuple),
)


@given(explanations)
@settings(max_examples=50, deadline=None)
def test_json_round_trip(explanation: Explanation) -> None:
    assert Explanation.from_json(explanation.to_json()) == explanation


@given(explanations)
@settings(max_examples=50, deadline=None)
def test_fits_whatever_the_names_are(explanation: Explanation) -> None:
    from rich.cells import cell_len

    assert max((cell_len(line) for line in str(explanation).splitlines()), default=0) <= WIDTH


def test_says_all_that_matters() -> None:
    text = str(FULL)
    for part in ("features_3_pointwise_conv", "128×64×1×1", "10.0%", "unstructured", "41.2", "55.0", "75%"):
        assert part in text
    assert "97% of its weights are nonzero" in text
    assert "40% nonzero" in text
    assert "never" in text
    assert "topk" in text
    assert "no kernel for aten.topk" in text
    assert "2 (add_1, …)" in text
    assert "zero facts assume finite inputs" in text


def test_summary_counts() -> None:
    assert FULL.summary() == "4 layers: 1 sparse, 2 stayed dense; 1 nodes run by torch; 0.158 ms measured"
    assert Explanation().summary() == "0 layers: 0 sparse, 0 stayed dense"


def test_markup_in_names_is_shown_as_it_is() -> None:
    layer = Layer("blocks[0]", "conv2d", reason="[red]odd[/red]", kind="dense", density=1.0)
    assert "blocks[0]" in str(Explanation((layer,)))
    assert "[red]odd[/red]" in str(Explanation((layer,), notes=("[bold]n",)))
    assert "[bold]n" in str(Explanation((layer,), notes=("[bold]n",)))


def test_measured_times_are_filled_in() -> None:
    timed = FULL.timed({"classifier": 2e-6, "unknown": 1.0})
    assert [layer.time_us for layer in timed.layers] == [55.0, 100.0, pytest.approx(2.0), 3.0]
    assert FULL.layers[2].time_us is None


@pytest.mark.parametrize("text", ["{}", "[]", '{"layers": [{"node": "a", "op": "b", "shape": [], "colour": 1}]}'])
def test_malformed_json(text: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Explanation.from_json(text)


def test_needs_no_torch() -> None:
    code = "import sys; from sparsec.run import explanation as e; str(e.Explanation((e.Layer('a', 'b'),)))"
    code += "; assert not {'torch', 'tvm'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
