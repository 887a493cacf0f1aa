"""Artifacts for several processors from C: the same choice as Python's, and lists that a hostile hand has made."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.run.artifact import save_variants
from sparsec.run.flat_program import flat_variants
from tests.compiler.test_c_artifact import COMPILERS, ROOT, built, called, compared, harness, refused  # noqa: F401
from tests.compiler.test_variants import FOREIGN
from tests.compiler.tiny_program import ANY_MACHINE, LARGER, variant

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not COMPILERS, reason="no C compiler (gcc, clang or cc) on PATH")]

ONES = {"output": {"list": ["leaf"]}}


def saved(folder: Path, *machines: dict[str, Any]) -> Path:
    return save_variants(folder / "net.sparsec", [variant(machine, 2.0 + i) for i, machine in enumerate(machines)], ONES)


@pytest.mark.parametrize("machines", [(LARGER, ANY_MACHINE), (FOREIGN, LARGER, ANY_MACHINE), (ANY_MACHINE, LARGER)])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_as_python(harness: Path, tmp_path: Path, machines: Any, threads: int) -> None:  # noqa: F811
    compared(harness, saved(tmp_path, *machines), threads, 2)
    compared(harness, tmp_path / "net.sparsec/plain", threads, 2)


def test_the_example_builds_from_the_artifact_alone(tmp_path: Path) -> None:
    artifact = saved(tmp_path, LARGER, ANY_MACHINE)
    done = built(COMPILERS[0], artifact / "example.c", artifact, tmp_path / "run", also=(artifact / "sparsec.c",))
    assert done.returncode == 0, done.stderr
    for place in (artifact, artifact / "plain"):
        assert called(tmp_path / "run", place) == "y 384 bytes, begins with 8.5\n"


@pytest.mark.parametrize(
    ("machines", "words"),
    [((LARGER, FOREIGN), ("riscv64",)), ((FOREIGN, LARGER), ("amx-tile-9",)), ((LARGER, {**LARGER, "mcpu": "plain"}), ("amx-tile-9",))],
)
def test_none_that_runs_here(harness: Path, tmp_path: Path, machines: Any, words: tuple[str, ...]) -> None:  # noqa: F811
    said = refused(harness, saved(tmp_path, *machines))
    assert all(word in said for word in ("No variant of the artifact can run here", *words))


@pytest.fixture
def both(tmp_path: Path) -> Path:
    path = saved(tmp_path, LARGER, ANY_MACHINE)
    np.zeros(96, np.float32).tofile(tmp_path / "in0.bin")
    return path


@pytest.mark.parametrize("name", ["larger", "plain"])
@pytest.mark.parametrize("damage", ["gone", "program.bin", "exchanged"])
def test_a_variant_that_is_not_the_one_that_was_saved(harness: Path, both: Path, name: str, damage: str) -> None:  # noqa: F811
    """It is found where the list says so, also where the processor would not run it."""
    if damage == "gone":
        shutil.rmtree(both / name)
        wanted = "cannot be read"
    elif damage == "exchanged":
        other = saved(both.parent / "other", variant(LARGER).machine, variant(ANY_MACHINE).machine, FOREIGN)
        shutil.rmtree(both / name)
        (other / ("plain" if name == "larger" else "larger")).rename(both / name)
        wanted = "is not the variant that was saved"
    else:
        content = bytearray((both / name / damage).read_bytes())
        content[len(content) // 2] ^= 1
        (both / name / damage).write_bytes(content)
        wanted = "is not the variant that was saved"
    said = refused(harness, both)
    assert wanted in said and f"net.sparsec/{name}" in said


@pytest.mark.parametrize("file", ["weights.safetensors", "kernels-*.so"])
def test_damaged_files_of_the_variant_that_is_taken(harness: Path, both: Path, file: str) -> None:  # noqa: F811
    for name in ("larger", "plain"):
        (place,) = (both / name).glob(file)
        place.write_bytes(place.read_bytes()[:-1])
    assert f"net.sparsec/plain/{place.name} is incomplete or altered" in refused(harness, both)


def listed(both: Path, **programs: bytes) -> Path:
    (both / "program.bin").write_bytes(flat_variants(programs))
    return both


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("..", "link out"),
        (".", "link out"),
        ("", "outside"),
        ("larger/../plain", "outside"),
        ("/tmp", "outside"),
        ("x" * 5000, "too long"),
        ("x" * 300, "cannot be read"),
        ("nowhere", "cannot be read"),
        ("out", "link out"),
        ("round", "cannot be read"),
        ("program.bin", "cannot be read"),
    ],
)
def test_hostile_names(harness: Path, both: Path, name: str, words: str) -> None:  # noqa: F811
    program = (both / "plain/program.bin").read_bytes()
    shutil.copytree(both / "plain", both.parent / "elsewhere")
    (both.parent / "program.bin").write_bytes(program)
    (both / "out").symlink_to(both.parent / "elsewhere")
    (both / "round").symlink_to(both / "round")
    assert words in refused(harness, listed(both, **{name: program}))


def test_lists_of_other_lengths(harness: Path, both: Path) -> None:  # noqa: F811
    larger = (both / "larger/program.bin").read_bytes()
    assert "has no variant" in refused(harness, listed(both))
    for count in range(1, 65):
        (both / str(count)).symlink_to(both / "larger")
    assert "amx-tile-9" in refused(harness, listed(both, **{str(count): larger for count in range(1, 65)}))
    assert "too many" in refused(harness, listed(both, **{str(count): larger for count in range(66)}))


def test_variants_have_no_variants(harness: Path, both: Path) -> None:  # noqa: F811
    inner = saved(both / "plain", LARGER, ANY_MACHINE)
    content = (inner / "program.bin").read_bytes()
    inner.rename(both / "inner")
    assert "a variant has variants" in refused(harness, listed(both, inner=content))


def test_mutated_lists_are_refused(harness: Path, both: Path) -> None:  # noqa: F811
    loaded, found = map(int, called(harness, "mutate", both, "program.bin", 500, 1, 0, 1).split())
    assert loaded == 0 and found > 450


def test_mutated_and_sealed_lists_never_harm_the_loader(harness: Path, both: Path) -> None:  # noqa: F811
    loaded, found = map(int, called(harness, "mutate", both, "program.bin", 1000, 2, 1, 2).split())
    assert found > 500 and loaded < 500
    compared(harness, both, 1, 2)


def test_python_and_c_look_at_as_many() -> None:
    from sparsec.run.variants import MOST

    assert f"MOST_VARIANTS = {MOST} }}" in (ROOT / "compiler/run/c/sparsec.c").read_text()
