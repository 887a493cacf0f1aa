"""Artifacts for several processors: the best variant for this one is taken, and nothing else is."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.errors import ArtifactError, MachineError
from sparsec.run import artifact, processor
from sparsec.run.artifact import C_FILES, Variant, load, read_explanation, save, save_variants
from sparsec.run.explanation import Explanation
from sparsec.run.manifest import MANIFEST, write_manifest
from sparsec.run.variants import MOST
from tests.compiler.test_artifact import X, rewrite
from tests.compiler.tiny_program import ANY_MACHINE, LARGER, chain, library, variant

LEAF = {"output": "leaf"}
FOREIGN = {"arch": "riscv64", "features": [], "mcpu": "foreign"}
WEIGHTS = {"larger": 5.0, "plain": 3.0, "foreign": 7.0}


def saved(path: Path, *machines: dict[str, Any]) -> Path:
    """The artifact of ``chain()``, with another weight for each machine."""
    return save_variants(path, [variant(machine, WEIGHTS[machine["mcpu"]]) for machine in machines], LEAF)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    return saved(tmp_path / "both.sparsec", LARGER, ANY_MACHINE)


@pytest.fixture
def larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor has what none has."""
    flags = processor.flags() | {"amx-tile-9"}
    monkeypatch.setattr(processor, "flags", lambda: flags)


def weight(path: Path) -> float:
    """Of the variant that is loaded: y = (x * weight + 1) * 2 + 0.5."""
    found = np.unique(np.round((load(path)(np.ones_like(X)) - np.float32(0.5)) / 2 - 1, 5))
    assert found.size == 1
    return float(found[0])


def test_the_first_that_the_processor_can_run(both: Path, tmp_path: Path) -> None:
    assert weight(both) == 3.0
    assert weight(saved(tmp_path / "three.sparsec", FOREIGN, LARGER, ANY_MACHINE)) == 3.0
    assert weight(saved(tmp_path / "reversed.sparsec", ANY_MACHINE, LARGER)) == 3.0


@pytest.mark.usefixtures("larger")
def test_a_better_processor_takes_another(both: Path) -> None:
    assert weight(both) == 5.0


def test_what_lies_where(both: Path) -> None:
    inside = {"manifest.json", "weights.safetensors", "program.bin"}
    assert {file.name for file in both.iterdir()} == {"manifest.json", "program.bin", *C_FILES, "larger", "plain"}
    for name in ("larger", "plain"):
        (kernels,) = (both / name).glob("kernels-*.so")
        assert {file.name for file in (both / name).iterdir()} == {kernels.name, *inside}


def test_one_variant_is_an_artifact_as_ever(tmp_path: Path) -> None:
    one = save_variants(tmp_path / "one.sparsec", [variant(ANY_MACHINE)], LEAF)
    plain = save(tmp_path / "plain.sparsec", chain(), library(), None, LEAF, ANY_MACHINE)
    assert json.loads((one / MANIFEST).read_text()) == json.loads((plain / MANIFEST).read_text())
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {file.name: file.read_bytes() for file in plain.iterdir()}


def test_none_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.sparsec", LARGER, FOREIGN)
    with pytest.raises(MachineError, match=r"larger: .* lacks amx-tile-9\. foreign: It is for riscv64") as caught:
        load(path)
    assert caught.value.where == str(path) and caught.value.hint
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_the_same_reason_is_said_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.sparsec", {**FOREIGN, "mcpu": "larger"}, FOREIGN)
    with pytest.raises(MachineError) as caught:
        load(path)
    assert caught.value.why.count("riscv64") == 1


def test_a_variant_alone_and_a_copy_of_all(both: Path, tmp_path: Path) -> None:
    shutil.copytree(both / "plain", tmp_path / "alone")
    shutil.copytree(both, tmp_path / "copy")
    shutil.rmtree(both)
    assert weight(tmp_path / "alone") == weight(tmp_path / "copy") == 3.0
    with pytest.raises(MachineError, match="amx-tile-9"):
        load(tmp_path / "copy/larger")


def test_a_pickle_chooses_again(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = pickle.dumps(load(both))
    flags = processor.flags() | {"amx-tile-9"}
    monkeypatch.setattr(processor, "flags", lambda: flags)
    ones = np.ones_like(X)
    assert pickle.loads(kept)(ones)[0, 0, 0] == 12.5


def test_explanations_are_those_of_the_variant_here(tmp_path: Path) -> None:
    said = [Variant(chain(), library(), Explanation(notes=(m["mcpu"],)), m) for m in (FOREIGN, ANY_MACHINE, LARGER)]
    path = save_variants(tmp_path / "net.sparsec", said, LEAF)
    assert read_explanation(path).notes == ("plain",) == load(path).explain().notes
    assert read_explanation(save_variants(tmp_path / "away.sparsec", said[::2], LEAF)).notes == ("foreign",)


@pytest.mark.parametrize(
    "file", ["plain/manifest.json", "plain/weights.safetensors", "plain/program.bin", "larger/manifest.json", *C_FILES]
)
@pytest.mark.parametrize("damage", ["remove", "flip"])
def test_damage_to_what_is_read(both: Path, file: str, damage: str) -> None:
    content = bytearray((both / file).read_bytes())
    content[len(content) // 2] ^= 1
    (both / file).unlink()
    if damage == "flip":
        (both / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"altered|missing|readable"):
        load(both)


def test_a_variant_that_is_gone(both: Path) -> None:
    shutil.rmtree(both / "larger")
    with pytest.raises(ArtifactError, match="no artifact") as caught:
        load(both)
    assert caught.value.where.endswith("both.sparsec/larger")


def test_a_whole_variant_of_another_artifact(both: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.sparsec", chain(9.0), library(), None, LEAF, ANY_MACHINE)
    shutil.rmtree(both / "plain")
    other.rename(both / "plain")
    with pytest.raises(ArtifactError, match="variant of the artifact has been altered"):
        load(both)


def looped(path: Path) -> Path:
    """An artifact one of whose variants is a list of variants, which is sealed as it should be."""
    inner = saved(path / "inner", LARGER, ANY_MACHINE)
    digest = json.loads((inner / MANIFEST).read_text())["digest"]
    rewrite(path, lambda m: m.update(variants=[{"folder": "inner", "digest": digest}]))
    return path


def test_variants_have_no_variants(both: Path) -> None:
    with pytest.raises(ArtifactError, match="variant of the artifact has been altered"):
        load(looped(both))


LISTS: list[Callable[[list[dict[str, Any]]], Any]] = [
    lambda rows: [{**rows[1], "folder": name} for name in ("..",)],
    lambda rows: [{**rows[1], "folder": ""}],
    lambda rows: [{**rows[1], "folder": "."}],
    lambda rows: [{**rows[1], "folder": "larger/../plain"}],
    lambda rows: [{**rows[1], "folder": "/tmp"}],
    lambda rows: [{**rows[1], "folder": "x" * 5000}],
    lambda rows: [{**rows[1], "folder": "a\0b"}],
    lambda rows: [{**rows[1], "folder": "\ud83d"}],
    lambda rows: [{**rows[1], "folder": "nowhere"}],
    lambda rows: [{**rows[1], "folder": "out"}],
    lambda rows: [{**rows[1], "folder": "round"}],
    lambda rows: [{**rows[1], "digest": None}],
    lambda rows: [rows[0]] * (MOST + 1),
    lambda rows: [],
    lambda rows: {},
    lambda rows: "plain",
    lambda rows: None,
    lambda rows: 7,
    lambda rows: [{"folder": "plain"}],
    lambda rows: ["plain"],
]


@pytest.mark.parametrize("number", range(len(LISTS)))
def test_hostile_lists(both: Path, tmp_path: Path, number: int) -> None:
    shutil.copytree(both / "plain", tmp_path / "elsewhere")
    (both / "out").symlink_to(tmp_path / "elsewhere")
    (both / "round").symlink_to(both / "round")
    rewrite(both, lambda m: m.update(variants=LISTS[number](m["variants"])))
    for read in (load, read_explanation):
        with pytest.raises(ArtifactError):
            read(both)


@pytest.mark.parametrize("files", [None, [], 3, {"../plain": "0"}, {"x" * 5000: "0"}])
def test_hostile_files_beside_the_variants(both: Path, files: Any) -> None:
    rewrite(both, lambda m: m.update(files=files))
    with pytest.raises(ArtifactError):
        load(both)


def test_an_altered_list(both: Path) -> None:
    manifest = json.loads((both / MANIFEST).read_text())
    manifest["variants"].reverse()
    (both / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="altered"):
        load(both)


@pytest.mark.parametrize("form", [5, 7, "6"])
def test_other_formats_are_refused(both: Path, form: Any) -> None:
    manifest = json.loads((both / MANIFEST).read_text())
    write_manifest(both, {**{name: value for name, value in manifest.items() if name != "digest"}, "format": form})
    with pytest.raises(ArtifactError, match=r"has format .*, this version reads 6"):
        load(both)


def test_one_replaces_the_other(both: Path) -> None:
    before = load(both)
    assert weight(save(both, chain(9.0), library(), None, LEAF, ANY_MACHINE)) == 9.0
    assert {file.name for file in both.iterdir() if file.is_dir()} == set()
    assert weight(saved(both, LARGER, ANY_MACHINE)) == 3.0
    assert before(np.ones_like(X))[0, 0, 0] == 8.5
    assert [file.name for file in both.parent.iterdir()] == [both.name]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_in_any_variant_leaves_the_old_artifact(both: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    real, calls = artifact.save_file, []

    def full(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(artifact, "save_file", full)
    with pytest.raises(ArtifactError, match="No space left"):
        save_variants(both, [variant(LARGER, 1.0), variant(ANY_MACHINE, 2.0)], LEAF)
    assert len(calls) == failing and weight(both) == 3.0
    assert [file.name for file in both.parent.iterdir()] == [both.name]
