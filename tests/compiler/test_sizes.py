"""Graphs by size: which are compiled, which are kept, and what is told."""

import itertools
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from sparsec.errors import InvalidInput
from sparsec.graphs_by_size import KEPT, KEPT_BYTES, GraphsBySize
from sparsec.ir.symbols import Signature, SymbolSpec
from sparsec.run.program import Size

_NUMBERS = itertools.count()


@dataclass
class Program:
    """Stands in for a captured program with a batch and tokens."""

    sizes: dict[str, int]
    batches: frozenset[str] = frozenset({"batch"})
    symbols: dict[str, SymbolSpec] = field(default_factory=lambda: {"batch": SymbolSpec("batch"), "tokens": SymbolSpec("tokens")})
    signature: Signature = field(default_factory=Signature)

    def at(self, sizes: dict[str, int]) -> "Program":
        if sizes["tokens"] == 13:
            raise InvalidInput("No 13.")
        return Program(sizes, self.batches, self.symbols)


def graph(captured: Program, *, whole: bool, least: int = 0, nbytes: int = 0) -> Any:
    """Stands in for a compiled graph; with `least` its kernels take tokens from there to what it was compiled for."""
    sizes = (Size("tokens", least, captured.sizes["tokens"]),) if least else ()
    programs = [SimpleNamespace(program=SimpleNamespace(sizes=sizes))]
    held = {-1: 1 << 20, next(_NUMBERS): nbytes}
    return SimpleNamespace(
        fully_compiled=whole, any_batch=whole, programs=programs, sizes=captured.sizes, held=held, forget_origins=lambda: None
    )


def graphs(whole: bool, least: int = 0, nbytes: int = 0) -> tuple[GraphsBySize, list[dict[str, int]]]:
    built: list[dict[str, int]] = []

    def build(captured: Any) -> Any:
        built.append(dict(captured.sizes))
        return graph(captured, whole=whole, least=least, nbytes=nbytes)

    first: Any = Program({"batch": 2, "tokens": 64})
    return GraphsBySize(first, graph(first, whole=whole, least=least), build), built


def test_a_graph_that_is_one_region_serves_every_batch() -> None:
    by_size, built = graphs(whole=True)
    for batch in (1, 2, 7):
        assert by_size({"batch": batch, "tokens": 64}).sizes["tokens"] == 64
        assert by_size({"batch": batch, "tokens": 9}).sizes["tokens"] == 9
    assert built == [{"batch": 1, "tokens": 9}]
    assert by_size.notes == ("compiled again for tokens=9",)


def test_a_graph_with_parts_in_torch_serves_one_batch() -> None:
    by_size, built = graphs(whole=False)
    for batch in (2, 1, 2, 1):
        assert by_size({"batch": batch, "tokens": 64}).sizes == {"batch": batch, "tokens": 64}
    assert built == [{"batch": 1, "tokens": 64}]
    assert by_size.notes == ("compiled again for batch=1, tokens=64",)


def test_kernels_that_take_sizes_at_run_time_serve_all_up_to_a_bucket() -> None:
    by_size, built = graphs(whole=True, least=1)
    for tokens in (1, 64, 30):
        assert by_size({"batch": 3, "tokens": tokens}).sizes["tokens"] == 64
    assert not built
    for tokens in (65, 128, 100, 3):
        by_size({"batch": 3, "tokens": tokens})
    assert built == [{"batch": 3, "tokens": 128}]


def test_the_graph_not_used_for_longest_goes() -> None:
    by_size, built = graphs(whole=True)
    for tokens in range(1, KEPT + 1):
        by_size({"batch": 1, "tokens": tokens})
    by_size({"batch": 1, "tokens": 1})
    by_size({"batch": 1, "tokens": 100})
    by_size({"batch": 1, "tokens": 1})
    assert len(built) == KEPT + 1
    by_size({"batch": 1, "tokens": 2})
    assert len(built) == KEPT + 2
    assert by_size.notes[0] == "compiled again for tokens=2"
    assert by_size.notes[-1].startswith("2 graphs for further sizes")
    assert len(by_size.notes) == KEPT + 1


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsec.graphs_by_size.give_back", lambda held: None)


@pytest.mark.parametrize(("nbytes", "kept"), [(0, KEPT), (KEPT_BYTES // 3, 3), (KEPT_BYTES // 3 + 1, 2), (2 * KEPT_BYTES, 1)])
def test_bytes_that_graphs_do_not_share_are_bounded(nbytes: int, kept: int) -> None:
    by_size, built = graphs(whole=True, nbytes=nbytes)
    for tokens in range(1, 12):
        by_size({"batch": 1, "tokens": tokens})
    for tokens in range(11, 11 - kept, -1):
        by_size({"batch": 1, "tokens": tokens})
    assert len(built) == 11
    by_size({"batch": 1, "tokens": 11 - kept})
    assert len(built) == 12


def test_what_cannot_be_compiled_is_not_kept() -> None:
    by_size, _ = graphs(whole=True)
    for _ in range(2):
        with pytest.raises(InvalidInput, match="No 13"):
            by_size({"batch": 1, "tokens": 13})
    assert by_size.notes == ()


def test_threads_compile_a_size_once() -> None:
    by_size, built = graphs(whole=True)
    threads = [threading.Thread(target=by_size, args=({"batch": 1, "tokens": 5},)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_inputs_with_batches_of_their_own_share_a_graph_while_these_are_alike() -> None:
    built: list[dict[str, int]] = []

    def build(captured: Any) -> Any:
        built.append(dict(captured.sizes))
        return graph(captured, whole=True)

    names = frozenset({"ids", "mask"})
    first: Any = Program({"ids": 2, "mask": 2, "tokens": 64}, names, {name: SymbolSpec(name) for name in (*names, "tokens")})
    by_size = GraphsBySize(first, graph(first, whole=True), build)
    by_size({"ids": 5, "mask": 5, "tokens": 64})
    assert not built
    for _ in range(2):
        by_size({"ids": 5, "mask": 1, "tokens": 64})
    assert built == [{"ids": 5, "mask": 1, "tokens": 64}]
