"""Artifacts from C: the shipped loader against Python's, bit for bit, and against everything that can be wrong with a directory."""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.run.affine import Affine
from sparsec.run.artifact import load, save
from sparsec.run.flat_program import MOST_AXES, flat_program
from sparsec.run.program import DTYPES, GROUP_WIDTH, RECORD_WIDTH, Patch, Port, Program, Size
from tests.compiler.tiny_program import ANY_MACHINE, chain, library, pair, strips

ROOT = Path(__file__).parents[2]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)] or [name for name in ("cc",) if shutil.which(name)]
STRICT = ("-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2")
CHECKED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
RANDOM = np.random.default_rng(0)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not COMPILERS, reason="no C compiler (gcc, clang or cc) on PATH")]


def built(compiler: str, source: Path, include: Path, out: Path, *flags: str, also: tuple[Path, ...] = ()) -> subprocess.CompletedProcess:
    command = [compiler, *STRICT, *flags, "-I", str(include), str(source), *map(str, also), "-ldl", "-lpthread", "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def called(program: Path, *words: Any) -> str:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=250, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c_harness.c, with the compiler's checks of memory and arithmetic where it has them."""
    out, source = tmp_path_factory.mktemp("c") / "harness", ROOT / "tests/compiler/c_harness.c"
    for flags in (CHECKED, ()):
        done = built(COMPILERS[0], source, ROOT / "compiler/run/c", out, *flags)
        if done.returncode == 0:
            return out
    raise AssertionError(done.stderr)


def saved(folder: Path, program: Program, outputs: int = 1, machine: dict[str, Any] = ANY_MACHINE) -> Path:
    return save(folder / "net.sparsec", program, library(), None, {"output": {"list": ["leaf"] * outputs}}, machine)


def growing() -> Program:
    """``chain()`` on as many elements of 96 as a call says, with room for indices that nothing reads."""
    ids = Port("ids", (98,), "int32", Affine("n", 2), limit=7)
    ports = {"inputs": (Port("x", (96,), follows=Affine("n")), ids), "outputs": (Port("y", (96,), follows=Affine("n")),)}
    patches = tuple(Patch("groups", 5 * group + 2, Affine("n")) for group in (0, 1))
    return dataclasses.replace(chain(), **ports, sizes=(Size("n", 3, 96),), patches=patches)


def drawn(port: Port, batch: int, size: int) -> np.ndarray:
    shape = (batch, *port.shape_for({"n": size} if size else {}))
    if port.dtype == "float32":
        return RANDOM.standard_normal(shape).astype(np.float32)
    return RANDOM.integers(0, port.limit, shape, port.dtype) if port.limit else np.ones(shape, port.dtype)


def compared(harness: Path, artifact: Path, threads: int, batch: int, callers: int = 1, size: int = 0) -> None:
    """The C loader's results against Python's."""
    model, folder = load(artifact, threads), artifact.parent
    inputs = [drawn(port, batch, size) for port in model.inputs]
    for number, x in enumerate(inputs):
        x.tofile(folder / f"in{number}.bin")
    called(harness, "run", artifact, threads, batch, callers, folder, size)
    for number, y in enumerate(model.flat(*inputs).values()):
        np.testing.assert_array_equal(np.fromfile(folder / f"out{number}.bin", np.float32), y.reshape(-1))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("program", "outputs"), [(chain(), 1), (chain(joined=True), 1), (pair(), 2), (strips(3), 1)])
def test_same_bits_as_python(harness: Path, tmp_path: Path, program: Program, outputs: int, batch: int, threads: int) -> None:
    compared(harness, saved(tmp_path, program, outputs), threads, batch)


@pytest.mark.parametrize("threads", [1, 2])
def test_several_callers_at_once(harness: Path, tmp_path: Path, threads: int) -> None:
    compared(harness, saved(tmp_path, strips(2)), threads, 3, callers=4)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("program", [chain(), strips(7)])
def test_forked_children_and_threads_that_end(harness: Path, tmp_path: Path, program: Program, threads: int) -> None:
    left = int(called(harness, "forks", saved(tmp_path, program), threads))
    assert left <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [0, 3, 17, 96])
def test_sizes_of_a_call(harness: Path, tmp_path: Path, size: int, threads: int) -> None:
    compared(harness, saved(tmp_path, growing()), threads, 3, callers=2, size=size)


@pytest.mark.parametrize(
    ("size", "index", "text"), [(2, 0, "n must be between 3 and 96, it is 2"), (97, 0, "it is 97"), (3, 7, "rows 0 to 6")]
)
def test_sizes_and_indices_out_of_range(harness: Path, tmp_path: Path, size: int, index: int, text: str) -> None:
    artifact = saved(tmp_path, growing())
    np.zeros(size, np.float32).tofile(tmp_path / "in0.bin")
    np.full(size + 2, index, np.int32).tofile(tmp_path / "in1.bin")
    assert text in refused(harness, artifact, size=size)


@pytest.mark.parametrize("size", [3, 95, 96])
def test_a_size_at_which_kernels_would_leave_their_memory(harness: Path, tmp_path: Path, size: int) -> None:
    """The units do not follow the size: they suit the largest only."""
    artifact = saved(tmp_path, dataclasses.replace(growing(), patches=()))
    if size == 96:
        compared(harness, artifact, 1, 2, size=size)
        return
    np.zeros(size, np.float32).tofile(tmp_path / "in0.bin")
    np.zeros(size + 2, np.int32).tofile(tmp_path / "in1.bin")
    assert "would leave its memory" in refused(harness, artifact, size=size)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_network(harness: Path, tmp_path: Path, threads: int) -> None:
    import torch

    from sparsec import compile
    from sparsec.models import mobilenet_v2, prune

    torch.manual_seed(0)
    model = mobilenet_v2().eval()
    prune(model, 0.9)
    compile(model, (torch.zeros(1, 3, 96, 96),), threads=threads).save(tmp_path / "net.sparsec")
    compared(harness, tmp_path / "net.sparsec", threads, 3, callers=2)


@pytest.mark.slow
def test_a_transformer_at_any_number_of_tokens(harness: Path, tmp_path: Path) -> None:
    import torch

    from sparsec import compile
    from sparsec.models import prune
    from sparsec.models.attention import seed_transformer
    from sparsec.models.bert import Bert

    model = prune(seed_transformer(Bert(100, 64, 64, 2, 4, 128), 0).eval(), 0.8)
    tokens, example = torch.export.Dim("n", min=3, max=24), torch.ones(1, 24, dtype=torch.int64)
    artifact = compile(model, (example, example), threads=2, dynamic_shapes=({1: tokens}, {1: tokens})).save(tmp_path / "net.sparsec")
    for threads, size in [(1, 0), (1, 3), (2, 17), (2, 24)]:
        compared(harness, artifact, threads, 3, callers=2, size=size)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_example_builds_from_the_artifact_alone(tmp_path: Path, compiler: str) -> None:
    artifact = saved(tmp_path, chain())
    example = artifact / "example.c"
    assert len(example.read_text().splitlines()) <= 40
    done = built(compiler, example, artifact, tmp_path / "run", also=(artifact / "sparsec.c",))
    assert done.returncode == 0, done.stderr
    shutil.copytree(artifact, tmp_path / "copy")
    shutil.rmtree(artifact)
    assert called(tmp_path / "run", tmp_path / "copy", 2, 3) == "y 384 bytes, begins with 8.5\n"


def test_the_loader_is_c_plus_plus_too(tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("no g++ on PATH")
    source = tmp_path / "use.cpp"
    source.write_text('#include "sparsec.h"\nint use() { sparsec_free(nullptr); return sparsec_load("x", 1, nullptr); }\n')
    done = subprocess.run(["g++", "-Wall", "-Werror", "-I", ROOT / "compiler/run/c", "-c", source, "-o", tmp_path / "use.o"], check=False)
    assert done.returncode == 0


def test_wrong_calls_say_what_is_wrong(harness: Path, tmp_path: Path) -> None:
    lines = called(harness, "wrong", saved(tmp_path, chain())).splitlines()
    wanted = [
        "a path",
        "a path",
        "at least 1, it is 0",
        "/nowhere/program.bin",
        "no model",
        "no inputs",
        "for x",
        "x is not aligned",
        "for y",
    ]
    assert all(word in line for word, line in zip([*wanted, "it is -1", "it is 1099511627776"], lines, strict=True)), lines


def refused(harness: Path, artifact: Path, threads: int = 1, size: int = 0) -> str:
    """What the loader says of an artifact that it must not load."""
    command = [harness, "run", artifact, str(threads), "1", "1", artifact.parent, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    return done.stderr


def test_the_only_batch(harness: Path, tmp_path: Path) -> None:
    artifact = saved(tmp_path, dataclasses.replace(chain(), batches=(2, 2)))
    compared(harness, artifact, threads=1, batch=2)
    np.zeros(96, np.float32).tofile(tmp_path / "in0.bin")
    assert "compiled for a batch of 2, not 1" in refused(harness, artifact)


@pytest.mark.parametrize(
    ("machine", "word"),
    [({"arch": "riscv64", "features": []}, "riscv64"), ({"arch": "x86_64", "features": ["avx2", "amx-tile-9"]}, "amx-tile-9")],
)
def test_another_machine(harness: Path, tmp_path: Path, machine: dict[str, Any], word: str) -> None:
    assert f"{word}" in refused(harness, saved(tmp_path, chain(), machine=machine))


def test_another_executor(harness: Path, tmp_path: Path) -> None:
    artifact, files = saved(tmp_path, chain()), dict.fromkeys("abcd", b"")
    assert b"RUNNER" not in (artifact / "program.bin").read_bytes()
    (artifact / "program.bin").write_bytes(flat_program(dataclasses.replace(chain(), executor="wheels"), files, 0, ["x86_64"]))
    said = refused(harness, artifact)
    assert "needs the executor 'wheels', this one is 'cpu'" in said and "--target native" in said


def test_more_threads_than_there_is_room_for(harness: Path, tmp_path: Path) -> None:
    assert "at most 1 thread" in refused(harness, saved(tmp_path, dataclasses.replace(chain(), thread_slots=1)), 2)
    assert "load it for one" in refused(harness, saved(tmp_path / "unstated", strips(None)), 2)


def test_more_memory_than_there_is(harness: Path, tmp_path: Path) -> None:
    artifact = saved(tmp_path, dataclasses.replace(chain(), arena_bytes=1 << 45))
    np.zeros(96, np.float32).tofile(tmp_path / "in0.bin")
    assert "not enough memory to run" in refused(harness, artifact)


@pytest.mark.parametrize("pattern", ["program.bin", "kernels-*.so", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["remove", "truncate", "flip", "empty", "directory"])
def test_damaged_files(harness: Path, tmp_path: Path, pattern: str, damage: str) -> None:
    (file,) = saved(tmp_path, chain()).glob(pattern)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    file.unlink()
    content[middle] ^= 1
    if damage == "directory":
        file.mkdir()
    elif damage != "remove":
        file.write_bytes({"truncate": content[:middle], "flip": content, "empty": b""}[damage])
    said = refused(harness, file.parent)
    assert any(word in said for word in ("altered", "damaged", "cannot be read", "is not a file"))


@pytest.mark.parametrize("name", ["program.bin", "weights.safetensors"])
def test_pipes_devices_and_links_out_are_refused(harness: Path, tmp_path: Path, name: str) -> None:
    file = saved(tmp_path, chain()) / name
    copy = shutil.copy(file, tmp_path / "copy")
    for make, word in ((os.mkfifo, "is not a file"), (lambda path: path.symlink_to("/dev/zero"), "is not a file")):
        file.unlink()
        make(file)
        assert word in refused(harness, file.parent)
    if name != "program.bin":
        file.unlink()
        file.symlink_to(copy)
        assert "link out of" in refused(harness, file.parent)


@pytest.mark.parametrize(("program", "outputs"), [(chain(), 1), (growing(), 1), (pair(), 2)])
def test_mutated_programs_are_refused(harness: Path, tmp_path: Path, program: Program, outputs: int) -> None:
    loaded, found = map(int, called(harness, "mutate", saved(tmp_path, program, outputs), "program.bin", 500, 1, 0, 1).split())
    assert loaded == 0 and found > 450


@pytest.mark.parametrize(("program", "outputs"), [(chain(), 1), (growing(), 1), (pair(), 2)])
def test_mutated_and_sealed_programs_never_harm_the_loader(harness: Path, tmp_path: Path, program: Program, outputs: int) -> None:
    artifact = saved(tmp_path, program, outputs)
    compared(harness, artifact, 2, 2)
    loaded, found = map(int, called(harness, "mutate", artifact, "program.bin", 500, 2, 1, 2).split())
    assert found > 250 and loaded < 250
    compared(harness, artifact, 1, 2)


def test_the_header_and_the_writer_agree() -> None:
    header = (ROOT / "compiler/run/c/sparsec.h").read_text()
    (names,) = re.findall(r"typedef enum \{(.*)\} sparsec_dtype", header)
    assert tuple(name.strip().removeprefix("SPARSEC_").lower() for name in names.split(",")) == DTYPES
    assert f"#define SPARSEC_MOST_AXES {MOST_AXES}\n" in header
    assert f"RECORD_WIDTH = {RECORD_WIDTH}, GROUP_WIDTH = {GROUP_WIDTH}," in (ROOT / "compiler/run/c/sparsec.c").read_text()


def test_two_flips_that_sums_do_not_see(harness: Path, tmp_path: Path) -> None:
    """The highest bits of two words at an even distance: their sums, and those of words times numbers, stay modulo 2**64."""
    artifact = saved(tmp_path, chain())
    for name in ("program.bin", "weights.safetensors"):
        content = bytearray((artifact / name).read_bytes())
        whole, place = bytes(content), len(content) // 2 // 8 * 8
        content[place + 7] ^= 0x80
        content[place + 16 + 7] ^= 0x80
        (artifact / name).write_bytes(content)
        assert "altered" in refused(harness, artifact)
        (artifact / name).write_bytes(whole)


def test_the_flat_program_is_made_of_words(tmp_path: Path) -> None:
    content = flat_program(chain(), {"a": b"1", "b": b"", "c": b"", "d": b"2" * 9}, 0, ["x86_64"])
    words = np.frombuffer(content, "<i8")
    assert content[:8] == b"SPARSEC\0" and words[2] == len(content)
    assert words[3:7].tobytes() == hashlib.sha256(content[56:]).digest()


def test_too_many_axes_cannot_be_saved(tmp_path: Path) -> None:
    from sparsec.errors import ArtifactError

    program = dataclasses.replace(chain(), inputs=(Port("x", (1,) * 8 + (96,)),))
    with pytest.raises(ArtifactError, match="9 axes"):
        saved(tmp_path, program)
