"""Libraries are compiled once per set of kernels and machine, wherever they may be written."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tvm

from sparsec.backends.cpu import convert, executor, library
from sparsec.errors import MachineError
from sparsec.run.kernels import load_kernels
from tests.backends.cpu.test_extents import all_kernels
from tests.machines import AVX2, WIDEST

ROWS, PLANES = convert.copy_rows(AVX2.vector), convert.to_planes(AVX2.vector, 2)


@pytest.fixture
def compilations(monkeypatch) -> list[int]:
    made: list[int] = []
    original = tvm.compile
    monkeypatch.setattr(tvm, "compile", lambda *args, **kwargs: made.append(1) or original(*args, **kwargs))
    return made


def test_a_library_is_built_once_and_loads(tmp_path, compilations):
    first, again = (library.build([ROWS], AVX2, tmp_path / "new" / "folder") for _ in range(2))
    assert (first, len(compilations)) == (again, 1)
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert load_kernels(first) is load_kernels(again)


def test_names_follow_kernels_their_order_and_the_machine(monkeypatch):
    names = [library.key(kernels, AVX2) for kernels in ([ROWS], [PLANES], [ROWS, PLANES], [PLANES, ROWS])]
    names += [library.key([ROWS], WIDEST)] if WIDEST != AVX2 else []
    monkeypatch.setattr(library, "_source_digest", lambda: "other sources")
    names += [library.key([ROWS], AVX2)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("cache", [None, Path("/proc/nowhere"), Path(__file__)], ids=["none", "unwritable", "a file"])
def test_without_a_cache_libraries_live_as_long_as_the_process(cache, compilations):
    first, again = (library.build([ROWS], AVX2, cache) for _ in range(2))
    assert first == again
    assert first.exists()
    assert len(compilations) <= 1


def test_builders_at_the_same_time_leave_one_good_library(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(lambda _: library.build([ROWS], AVX2, tmp_path), range(2)))
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in paths]
    assert load_kernels(paths.pop())


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MachineError, match=r"No C or C\+\+ compiler was found[^$]*Install g\+\+[^$]* in CXX"):
        library.build([ROWS], AVX2, tmp_path / "cache")
    assert not [*(tmp_path / "cache").iterdir()]


@pytest.mark.parametrize("compiler", ["gcc", "g++", "clang"])
def test_a_compiler_of_c_alone_is_enough(tmp_path, monkeypatch, compiler):
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} on PATH")
    monkeypatch.setenv("CXX", compiler)
    assert load_kernels(library.build([ROWS], AVX2, tmp_path))


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "unsealed", "directory of links"])
def test_a_damaged_library_is_made_again(tmp_path, compilations, caplog, damage):
    path = library.build([ROWS], AVX2, tmp_path)
    content = path.read_bytes()
    changed = {"empty": b"", "short": content[: len(content) // 2], "unsealed": content[:-32]}
    path.unlink()
    if damage == "directory of links":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(changed.get(damage, content[:500] + bytes([content[500] ^ 1]) + content[501:]))
    with caplog.at_level("WARNING", "sparsec"):
        assert library.build([ROWS], AVX2, tmp_path) == path
    assert len(compilations) == 2 and "damaged" in caplog.text
    assert load_kernels(path) and library.build([ROWS], AVX2, tmp_path) == path and len(compilations) == 2


def test_libraries_follow_the_umask_and_nothing_else_is_left(tmp_path):
    before = os.umask(0o027)
    try:
        path = library.build([ROWS], AVX2, tmp_path)
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o750


@pytest.mark.slow
@pytest.mark.parametrize("machine", [WIDEST, AVX2], ids=["widest", "avx2"])
def test_passes_that_are_left_out_would_change_nothing(machine):
    """Of every template, all ways in which it reads and writes."""
    module, goal = executor.module(all_kernels(machine)), library.target(machine)
    texts = [made.mod.inspect_source("ll") for made in (library.compiled(module, goal), tvm.compile(module, target=goal))]
    first, second = (library._ADDRESSES.sub("", text) for text in texts)
    assert first == second
