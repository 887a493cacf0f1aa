"""A README whose examples run, a Makefile whose targets are there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import sparsec
from sparsec.ir.editor import Editor
from sparsec.run.flat_program import VERSION
from sparsec.run.manifest import FORMAT
from tests.documents import ROOT, blocks, commands

README = ROOT / "README.md"
# Commands that measure take minutes.
MEASURING = ("bench", "tune")


def run(command: Sequence[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_import_brings_neither_torch_nor_tvm(tmp_path: Path) -> None:
    program = "import sys, sparsec, sparsec.cli, sparsec.run.artifact; print([m for m in ('torch', 'tvm') if m in sys.modules])"
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
        run([sys.executable, "-m", "sparsec", command[1], *arguments], tmp_path)


def test_the_makefile_knows_its_targets_and_ci_calls_them() -> None:
    listed = run(["make", "-n", "-o", ".venv/.installed", "demo", "test", "test-fast", "lint", "bench", "docs"], ROOT)
    assert (
        listed.index("benchmarks/demo.py") < listed.index("-m pytest") < listed.index("ruff check") < listed.index("benchmarks/networks.py")
    )
    assert "mkdocs build --strict" in listed
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"make lint test\b", script.read_text())


@pytest.mark.parametrize(("version", "place"), [("3.11", ".venv"), ("3.12", ".venv-3.12")])
def test_each_interpreter_has_its_environment(tmp_path: Path, version: str, place: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    commands = run(["make", "-n", "-o", f"{place}/.installed", "test-fast", f"PYTHON={python}"], ROOT)
    assert f"\n{place}/bin/python -m pytest" in f"\n{commands}"


def test_versions_are_those_of_the_changelog() -> None:
    """pyproject.toml has the only number; what is installed, and so what artifacts record, is that one. Formats are stated as they are."""
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    changelog, readme = (" ".join((ROOT / name).read_text().split()) for name in ("CHANGELOG.md", "README.md"))
    assert project is not None and sparsec.__version__ == project[1] == re.findall(r"## (\S+)", changelog)[0]
    assert f"artifacts `format` {FORMAT} (in `manifest.json`), `program.bin` version {VERSION} " in changelog
    assert f"a format number of their own, {FORMAT} in this version" in readme
    assert f"enum {{ VERSION = {VERSION}," in (ROOT / "compiler/run/c/sparsec.c").read_text()


def test_contributing_names_what_a_pass_may_do() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    methods = {name for name in vars(Editor) if not name.startswith("_")}
    assert {"call", "replace", "note"} < methods == {name for name in methods if f"`{name}(" in guide or f" {name}()" in guide}
    assert all(f"`{call}(" in guide for call in ("apply", "match", "rewrite"))
