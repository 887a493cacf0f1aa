"""What an artifact says of itself, on any machine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.errors import ArtifactError
from sparsec.run.artifact import save, save_variants
from sparsec.run.inspection import Inspection, inspect
from sparsec.run.manifest import FORMAT
from tests.compiler.cli.shop import Invoke
from tests.compiler.test_artifact import rewrite
from tests.compiler.tiny_program import ANY_MACHINE, LARGER, TOKENS, chain, library, sized, variant

ARM = {"arch": "aarch64", "features": ["neon", "dotprod"], "mcpu": "cortex-a76"}


def says(invoke: Invoke, path: Path, wanted: tuple[str, ...], found: Inspection) -> None:
    """What the command says has all of these; as JSON it is what was found."""
    done = invoke("inspect", str(path))
    assert done.exit_code == 0
    for said in wanted:
        assert said in done.output
    assert json.loads(invoke("inspect", str(path), "--json").output) == json.loads(json.dumps(found.plain()))


def test_an_artifact_for_here(tmp_path: Path) -> None:
    path = save(tmp_path / "net.sparsec", sized(), library(), None, {"output": "leaf"}, ANY_MACHINE)
    found = inspect(path)
    assert (found.format, found.arch, found.features, found.not_here) == (FORMAT, "x86_64", ("avx2", "bmi", "fma"), "")
    assert (found.sizes, found.inputs, found.outputs) == (sized().sizes, sized().inputs, sized().outputs)
    assert found.sizes[0].most == TOKENS
    assert found.files == {file.name: file.stat().st_size for file in path.iterdir()}
    assert found.kernels == sized().kernels and found.arena_bytes == sized().arena_bytes


def test_an_artifact_for_elsewhere(tmp_path: Path, invoke: Invoke) -> None:
    path = save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ARM)
    found = inspect(path)
    assert (found.arch, found.cpu, found.features, found.batches) == ("aarch64", "cortex-a76", ("dotprod", "neon"), (0, None))
    assert "aarch64" in found.not_here
    wanted = (
        "for aarch64 (cortex-a76) with dotprod, neon",
        "does not run. It is for aarch64",
        "input x: float32",
        "batch: any",
        "program.bin",
    )
    says(invoke, path, wanted, found)


def test_an_artifact_for_several_processors(tmp_path: Path, invoke: Invoke) -> None:
    path = save_variants(tmp_path / "net.sparsec", [variant(ARM), variant(LARGER), variant(ANY_MACHINE)], {"output": "leaf"})
    found = inspect(path)
    assert (found.variant, found.arch, found.not_here) == ("plain", "x86_64", "")
    assert [each.variant for each in found.variants] == ["cortex-a76", "larger", "plain"]
    assert found.variants[2] == replace(inspect(path / "plain"), variant="plain")
    assert "aarch64" in found.variants[0].not_here and "amx-tile-9" in found.variants[1].not_here
    assert found.files == {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file()}
    size = sum(found.variants[1].files.values()) / 2**20
    wanted = (
        f"variant larger, for x86_64 (larger) with amx-tile-9, avx2, bmi, fma: {size:.1f} MiB. This processor lacks amx-tile-9.",
        "variant plain, for x86_64 (plain) with avx2, bmi, fma: ",
        "MiB. It runs here.",
        "here: runs the variant plain",
        "bytes  larger/program.bin",
    )
    says(invoke, path, wanted, found)


def test_an_artifact_none_of_whose_variants_runs_here(tmp_path: Path, invoke: Invoke) -> None:
    path = save_variants(tmp_path / "net.sparsec", [variant(LARGER), variant(ARM)], {"output": "leaf"})
    found = inspect(path)
    assert found.variant == "larger" and all(word in found.not_here for word in ("amx-tile-9", "aarch64"))
    assert (
        "here: does not run. larger: This processor lacks amx-tile-9. cortex-a76: It is for aarch64" in invoke("inspect", str(path)).output
    )
    shutil.rmtree(path / "cortex-a76")
    with pytest.raises(ArtifactError):
        inspect(path)


CHANGES = [
    lambda m: m["machine"].pop("arch"),
    lambda m: m["program"].pop("batches"),
    lambda m: m.update(program=3),
    lambda m: m.update(files=["x"]),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_malformed_is_refused(tmp_path: Path, change) -> None:
    path = save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
    rewrite(path, change)
    with pytest.raises(ArtifactError):
        inspect(path)


def test_no_artifact(tmp_path: Path, invoke: Invoke) -> None:
    done = invoke("inspect", str(tmp_path / "nowhere"))
    assert done.exit_code == 2 and "no artifact here" in done.output
