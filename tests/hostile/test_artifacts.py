"""Artifacts that a hostile hand has changed, through Python and C: refused, or run inside their memory to the same end; nothing crashes.

Python runs each in a child, C in a process with the compiler's checks of memory and arithmetic. Inputs, outputs and what the C loader takes
lie between pages that nobody may touch. What both run has to give the same bits: memory that is none of the program's would differ.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

import sparsec
from sparsec.run.artifact import load, save
from sparsec.run.inputs import NUMPY
from sparsec.run.program import Port, Program
from tests.compiler.test_c_artifact import CHECKED, COMPILERS, ROOT, built, growing
from tests.compiler.tiny_program import ANY_MACHINE, chain, library, pair, strips
from tests.hostile.changed import changed_file, changed_manifest, changed_words
from tests.hostile.crafted import crafted, forge, read
from tests.hostile.guarded import Memory
from tests.hostile.watched import watched
from tests.token_models import bert, images, sentences, vit

BATCH, LARGE = 2, 1 << 24
NEEDS_C = pytest.mark.skipif(not COMPILERS, reason="no C compiler (gcc, clang or cc) on PATH")


class Layers(nn.Module):
    """At least one of each kind of layer on maps: strided and plain stencils, products, pools, a sum, a product with a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise, self.strided = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 5, 2, 2, groups=16)
        self.wide, self.narrow, self.last = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 16, 3, 1, 1), nn.Linear(16, 21)
        for layer in (self.wide, self.narrow, self.last):
            layer.weight.data *= torch.rand_like(layer.weight) < 0.1
        self.eval()

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.stem(x))))
        x = nn.functional.max_pool2d(torch.relu(self.strided(x)), 2)
        x = x + self.narrow(torch.relu(self.wide(x)))
        return self.last(x.mean((2, 3)))


def tiny(folder: Path, name: str, program: Program, outputs: int = 1) -> Path:
    return save(folder / name, program, library(), None, {"output": {"list": ["leaf"] * outputs}}, ANY_MACHINE)


def networks(folder: Path) -> Iterator[Path]:
    """Real ones: maps, tokens whose number is free, tokens that are chosen."""
    cache, tokens = folder / "cache", torch.export.Dim("n", min=3, max=24)
    yield sparsec.compile(Layers(), (torch.zeros(1, 3, 28, 28),), threads=1, cache_dir=cache).save(folder / "maps")
    ids = sentences(2, 24)[0]
    yield sparsec.compile(bert(), (ids,), threads=1, cache_dir=cache, dynamic_shapes=({1: tokens},)).save(folder / "tokens")
    pruned = sparsec.compile(vit(depth=2), (images(1),), threads=1, cache_dir=cache, token_pruning={"keep": 0.5, "after": [1]})
    yield pruned.save(folder / "chosen")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("small")
    programs = {"chain": chain(), "joined": chain(joined=True), "strips": strips(2), "growing": growing()}
    return [*(tiny(folder, name, program) for name, program in programs.items()), tiny(folder, "pair", pair(), 2)]


@pytest.fixture(scope="module")
def whole(small: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [*small, *networks(tmp_path_factory.mktemp("networks"))]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("c") / "harness"
    done = built(COMPILERS[0], ROOT / "tests/compiler/c_harness.c", ROOT / "compiler/run/c", out, *CHECKED)
    if done.returncode:
        pytest.skip(f"{COMPILERS[0]} has no address and undefined-behaviour sanitizers: {done.stderr[-200:]}")
    return out


def given(port: Port, number: int) -> np.ndarray:
    """Inputs that suit a port; indices below their limit."""
    draw = np.random.default_rng(number)
    shape = (BATCH, *port.shape)
    if port.dtype == "float32":
        return draw.standard_normal(shape).astype(np.float32)
    return draw.integers(0, min(port.limit or 2, 2), shape).astype(NUMPY[port.dtype])


def reasonable(program: Program) -> bool:
    """Whether its tensors can be made."""
    shapes = [port.shape for port in (*program.inputs, *program.outputs)]
    return all(min(shape, default=0) >= 0 and 8 * np.prod([float(n) for n in shape]) < LARGE for shape in shapes)


def ran(folder: Path) -> str:
    """Load and run in memory that ends in pages of nobody; leaves what came out beside the artifact."""
    model = load(folder, threads=1)
    program = model._runner.program
    if not reasonable(program):
        return "large"
    inputs = [given(port, i) for i, port in enumerate(program.inputs)]
    model._runner._prepared(inputs, BATCH, {})  # indices are below their limits
    places = [Memory(x.nbytes) for x in inputs] + [Memory(BATCH * port.nbytes) for port in program.outputs]
    sizes = [x.nbytes for x in inputs] + [BATCH * port.nbytes for port in program.outputs]
    addresses = [place.end - size for place, size in zip(places, sizes, strict=True)]
    for x, address in zip(inputs, addresses, strict=False):
        np.frombuffer(_bytes(address, x.nbytes), np.uint8)[:] = x.reshape(-1).view(np.uint8)
    model._runner.run_addresses(addresses[: len(inputs)], addresses[len(inputs) :], BATCH)
    for number, (address, size) in enumerate(list(zip(addresses, sizes, strict=True))[len(inputs) :]):
        (folder.parent / f"python{number}.bin").write_bytes(bytes(_bytes(address, size)))
    return "ran"


def _bytes(address: int, size: int) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def by_c(harness: Path, folder: Path) -> str:
    """The same through the C loader: "refused", "ran", or what went wrong."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [harness, "run", folder, "1", str(BATCH), "1", folder.parent, "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        return "late"
    return {0: "ran", 3: "refused"}.get(done.returncode, f"{done.returncode}: {done.stderr[-600:]}")


class Tried:
    """What came of artifacts, counted."""

    def __init__(self, folder: Path, harness: Path | None) -> None:
        self.folder, self.harness = folder, harness
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def copy(self, artifact: Path) -> Path:
        shutil.rmtree(self.folder / "one", ignore_errors=True)
        (self.folder / "one").mkdir()
        return Path(shutil.copytree(artifact, self.folder / "one" / "net.sparsec"))

    def outcome(self, name: str, folder: Path, program: Program) -> tuple[str, str]:
        """What Python and C made of the artifact in ``folder``, which may hold ``program``; notes what is wrong with that."""
        python, c = watched(lambda: ran(folder), self.folder), ""
        if python.kind not in ("refused", "ran", "large") or python.seen:
            self.wrong.append(f"{name}, Python: {python.kind} {python.text} {python.seen}")
        if self.harness:
            for number, port in enumerate(program.inputs if reasonable(program) else ()):
                given(port, number).tofile(folder.parent / f"in{number}.bin")
            c = by_c(self.harness, folder)
            if c not in ("refused", "ran"):
                self.wrong.append(f"{name}, C: {c}")
        self.counts[f"{python.kind} {c}".strip()] += 1
        return python.kind, c

    def results(self, side: str) -> list[bytes]:
        """What came out of the last artifact on a side, "python" or "out" for C."""
        return [each.read_bytes() for each in sorted((self.folder / "one").glob(f"{side}*.bin"))]

    def finish(self) -> None:
        print(dict(self.counts))
        assert not self.wrong, f"{dict(self.counts)}\n" + "\n".join(self.wrong)


def try_crafted(artifacts: list[Path], numbers: range, tried: Tried) -> None:
    for number in numbers:
        base = artifacts[number % len(artifacts)]
        folder = tried.copy(base)
        done, program = crafted(read(base)[1], number)
        try:
            forge(folder, program)
        except (OverflowError, KeyError, ValueError):
            tried.counts["cannot be written"] += 1
            continue
        name = f"program {number} ({done} of {base.name})"
        if tried.outcome(name, folder, program) == ("ran", "ran") and tried.results("python") != tried.results("out"):
            tried.wrong.append(f"{name}: Python and C differ")


def test_some_crafted_programs(small: list[Path], tmp_path: Path) -> None:
    tried = Tried(tmp_path, None)
    try_crafted(small, range(40), tried)
    tried.finish()
    assert tried.counts["refused"] > 10 and tried.counts["ran"]


@NEEDS_C
@pytest.mark.slow
def test_crafted_programs_are_refused_or_stay_in_their_memory(whole: list[Path], harness: Path, tmp_path: Path) -> None:
    tried = Tried(tmp_path, harness)
    for artifact in whole:
        assert tried.outcome(artifact.name, tried.copy(artifact), read(artifact)[1]) == ("ran", "ran"), tried.wrong
    tried.counts.clear()
    try_crafted(whole, range(1000 if os.environ.get("SPARSEC_SWEEP") else 250), tried)
    tried.finish()
    assert sum(tried.counts.values()) - tried.counts["cannot be written"] >= 200
    assert tried.counts["refused refused"] > 100 and tried.counts["ran ran"] > 10


def try_changed(artifacts: list[Path], numbers: range, tried: Tried) -> None:
    """Refused, or right: Python reads no program.bin, and C no manifest; a program that either reads may be another one."""
    wanted = {}
    for base in artifacts:
        assert tried.outcome(base.name, tried.copy(base), read(base)[1])[0] == "ran"
        wanted[base] = tried.results("python")
    tried.counts.clear()
    for number in numbers:
        base, draw = artifacts[number % len(artifacts)], Random(number)
        folder = tried.copy(base)
        kind = ("file", "file", "manifest", "words")[number // len(artifacts) % 4]
        {"file": changed_file, "manifest": changed_manifest, "words": changed_words}[kind](folder, draw)
        name = f"artifact {number} ({kind} of {base.name})"
        python, c = tried.outcome(name, folder, read(base)[1])
        for side, which, blind in (("python", python, "words"), ("out", c, "manifest")):
            if which == "ran" and kind in ("file", blind) and tried.results(side) != wanted[base]:
                tried.wrong.append(f"{name}: another answer from {side}")


def test_some_changed_artifacts(small: list[Path], tmp_path: Path) -> None:
    tried = Tried(tmp_path, None)
    try_changed(small, range(40), tried)
    tried.finish()
    assert tried.counts["refused"] > 20


@NEEDS_C
@pytest.mark.slow
def test_changed_artifacts_are_refused_or_right(whole: list[Path], harness: Path, tmp_path: Path) -> None:
    tried = Tried(tmp_path, harness)
    try_changed(whole, range(2000 if os.environ.get("SPARSEC_SWEEP") else 400), tried)
    tried.finish()
    assert tried.counts["refused refused"] > 50
