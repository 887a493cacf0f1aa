"""What is shipped: the wheel's content and entry points, and a README whose examples run."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks, commands

README = ROOT / "README.md"
FOLDERS = {"compiler": "sparsec", "passes": "sparsec/passes", "backends": "sparsec/backends"}
FOLDERS |= {"autotune": "sparsec/autotune", "models": "sparsec/models"}
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *FOLDERS)
# Commands that measure take minutes.
MEASURING = ("bench", "tune")


def run(command: Sequence[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked; built from a copy, so that no build folder is left behind."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    program = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    name = run([sys.executable, "-c", program, str(made)], source).splitlines()[-1]
    zipfile.ZipFile(made / name).extractall(made / "content")
    return made / "content"


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    ours = {f"{package}/{path.relative_to(ROOT / folder)}" for folder, package in FOLDERS.items() for path in (ROOT / folder).rglob("*.py")}
    shipped = {str(path.relative_to(wheel)) for path in wheel.rglob("*.py")}
    assert shipped == ours
    assert all((wheel / "sparsec" / name).exists() for name in ("py.typed", "c/sparsec.c", "backends/x86/pool.c"))


def test_the_wheel_works_by_itself(wheel: Path, tmp_path: Path) -> None:
    program = "import sparsec, sparsec.passes, sparsec.backends.x86.backend, sparsec.autotune, sparsec.models; print(sparsec.__file__)"
    assert run([sys.executable, "-c", program], tmp_path, PYTHONPATH=str(wheel)).startswith(str(wheel))


def test_entry_points_and_licence(wheel: Path) -> None:
    (metadata,) = wheel.glob("*.dist-info")
    entries = configparser.ConfigParser()
    entries.read(metadata / "entry_points.txt")
    assert dict(entries["console_scripts"]) == {"sparsec": "sparsec.cli:main"}
    assert dict(entries["torch_dynamo_backends"]) == {"sparse": "sparsec.torch_door.backend:sparse_backend"}
    assert "Apache License" in (metadata / "licenses/LICENSE").read_text()
    assert "License-Expression: Apache-2.0" in (metadata / "METADATA").read_text()


def test_the_import_brings_neither_torch_nor_tvm(tmp_path: Path) -> None:
    program = "import sys, sparsec, sparsec.cli, sparsec.artifact; print([m for m in ('torch', 'tvm') if m in sys.modules])"
    assert run([sys.executable, "-c", program], tmp_path).strip() == "[]"


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    program = "\n".join(block.text for block in blocks(README, "python"))
    assert "backend=" in program and "sparsec.load" in program
    run([sys.executable, "-c", program], tmp_path)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    lines = [line for block in blocks(README, "sh") for line in commands(block) if line.startswith("sparsec ")]
    given = [shlex.split(line, comments=True) for line in lines]
    assert {command[1] for command in given} >= {"compile", "run", "explain", "doctor", *MEASURING}
    run([sys.executable, "-c", "import numpy as np; np.save('x.npy', np.ones((1, 3, 224, 224), np.float32))"], tmp_path)
    for command in given:
        arguments = ["--help"] if command[1] in MEASURING else command[2:]
        run([sys.executable, "-m", "sparsec.cli", command[1], *arguments], tmp_path)


def test_the_makefile_knows_its_targets_and_ci_calls_them() -> None:
    listed = run(["make", "-n", "-o", ".venv/.installed", "demo", "test", "test-fast", "lint", "bench", "docs"], ROOT)
    assert (
        listed.index("benchmarks/demo.py") < listed.index("-m pytest") < listed.index("ruff check") < listed.index("benchmarks/networks.py")
    )
    assert "mkdocs build --strict" in listed
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"make lint test\b", script.read_text())
