"""Libraries are compiled once per set of kernels and machine, wherever they may be written."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tvm

from sparsec.backends.cpu import convert, executor, library
from sparsec.errors import ArtifactError, MachineError
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


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf on PATH")
def test_a_library_needs_the_c_library_alone(tmp_path):
    path = library.build(all_kernels(AVX2), AVX2, tmp_path)
    dynamic, names = (
        subprocess.run(["readelf", "-W", how, path], capture_output=True, text=True, check=True).stdout for how in ("-d", "--dyn-syms")
    )
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert {name.partition(".")[0] for name in needed} <= {
        "libc",
        "libm",
        "libgcc_s",
        "libstdc++",
        "libpthread",
        "libdl",
        "ld-linux-x86-64",
    }
    rows = [line.split() for line in names.splitlines() if " UND " in line]
    assert not [row[7] for row in rows if len(row) > 7 and row[4] == "GLOBAL" and "@" not in row[7]]
    assert any(line.split()[4] == "UNIQUE" and line.split()[7] == "sparsec_pool_2" for line in names.splitlines() if "sparsec_pool" in line)


def test_what_is_no_library_of_kernels_is_refused(tmp_path):
    (tmp_path / "empty.so").write_bytes(b"")
    for path in (tmp_path / "empty.so", tmp_path / "absent.so", Path(np._core._multiarray_umath.__file__)):
        with pytest.raises(ArtifactError, match="not a kernel library"):
            load_kernels(path)


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
