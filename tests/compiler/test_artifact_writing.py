"""Writing an artifact: whole or not at all, and nothing of others."""

import dataclasses
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sparsec.errors import ArtifactError
from sparsec.run import artifact, replacing
from sparsec.run.artifact import load, save
from tests.compiler.tiny_program import ANY_MACHINE, chain, library

X = np.random.default_rng(0).standard_normal((3, 4, 24)).astype(np.float32)
Y = (X * 3 + 1) * 2 + np.float32(0.5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The artifact of ``chain()``."""
    return save(tmp_path / "tiny.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~mask}


def test_saving_again_replaces_and_a_loaded_model_lives_on(saved: Path) -> None:
    before = load(saved)
    save(saved, chain(weight=5.0), library(), None, {"output": "leaf"}, ANY_MACHINE)
    np.testing.assert_allclose(load(saved)(X), (X * 5 + 1) * 2 + np.float32(0.5), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(before(X), Y, rtol=1e-6, atol=1e-6)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(("module", "stage"), [(artifact, "save_file"), (replacing, "_swap")])
def test_a_failure_leaves_the_old_artifact(saved: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, stage: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, stage, full)
    with pytest.raises(ArtifactError, match="No space left"):
        save(saved, chain(weight=5.0), library(), None, {"output": "leaf"}, ANY_MACHINE)
    np.testing.assert_allclose(load(saved)(X), Y, rtol=1e-6, atol=1e-6)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_swap_that_fails_half_way_is_undone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target) == saved and not self.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ArtifactError, match="Input/output"):
        save(saved, chain(weight=5.0), library(), None, {"output": "leaf"}, ANY_MACHINE)
    np.testing.assert_allclose(load(saved)(X), Y, rtol=1e-6, atol=1e-6)


def test_what_is_not_an_artifact_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("precious", "file"):
        with pytest.raises(ArtifactError, match="not an artifact"):
            save(tmp_path / name, chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
    assert (tmp_path / "precious" / "data").read_text() == (tmp_path / "file").read_text() == "keep"


def test_tables_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        save(tmp_path / "bad.sparsec", dataclasses.replace(chain(), arena_bytes=-1), library(), None, {"output": "leaf"}, ANY_MACHINE)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        save("/proc/tiny.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
