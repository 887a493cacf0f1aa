"""What an artifact says of itself, on any machine."""

import json
from pathlib import Path

import pytest

from sparsec.errors import ArtifactError
from sparsec.run.artifact import save
from sparsec.run.inspection import inspect
from sparsec.run.manifest import FORMAT
from tests.compiler.cli.shop import Invoke
from tests.compiler.test_artifact import rewrite
from tests.compiler.tiny_program import ANY_MACHINE, TOKENS, chain, library, sized

ARM = {"arch": "aarch64", "features": ["neon", "dotprod"], "mcpu": "cortex-a76"}


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
    done = invoke("inspect", str(path))
    assert done.exit_code == 0
    wanted = (
        "for aarch64 (cortex-a76) with dotprod, neon",
        "does not run. It is for aarch64",
        "input x: float32",
        "batch: any",
        "program.bin",
    )
    for said in wanted:
        assert said in done.output
    assert json.loads(invoke("inspect", str(path), "--json").output) == json.loads(json.dumps(found.plain()))


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
