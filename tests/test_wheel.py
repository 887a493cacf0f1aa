"""The wheel: what it holds, and that it works where nothing of the checkout can be imported."""

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks

FOLDERS = {"compiler": "sparsec", "passes": "sparsec/passes", "backends": "sparsec/backends"}
FOLDERS |= {"autotune": "sparsec/autotune", "models": "sparsec/models"}
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *FOLDERS)
README = ROOT / "README.md"
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]
DATA = (
    "py.typed",
    "autotune/board.c",
    "backends/cpu/pool.c",
    "backends/cpu/extents.h",
    "doors/torch_compile/seen.c",
    *(f"run/c/{path.name}" for path in (ROOT / "compiler/run/c").iterdir()),
)


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """What a command prints. It finds no package of the checkout through the environment."""
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, env={**given, **environment}, check=False)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel; built from a copy, so that no build folder is left behind."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", made, "."], source)
    (found,) = made.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def content(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("content")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, in which torch, TVM and the other packages are those of this one.

    To install torch takes minutes. A path file brings this environment's packages, but none of its own path files: the checkout, which is
    installed through one, is not found.
    """
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    place = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    Path(place, "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    run([*pip, wheel], folder)
    return folder / "bin"


def test_every_module_and_all_data_are_in_the_wheel(content: Path) -> None:
    ours = {f"{package}/{path.relative_to(ROOT / folder)}" for folder, package in FOLDERS.items() for path in (ROOT / folder).rglob("*.py")}
    files = {str(path.relative_to(content)) for path in content.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith("sparsec/")} == ours | {f"sparsec/{name}" for name in DATA}


def test_entry_points_and_metadata(content: Path) -> None:
    (metadata,) = content.glob("*.dist-info")
    entries = configparser.ConfigParser()
    entries.read(metadata / "entry_points.txt")
    assert dict(entries["console_scripts"]) == {"sparsec": "sparsec.cli:main"}
    assert dict(entries["torch_dynamo_backends"]) == {"sparse": "sparsec.doors.torch_compile.backend:sparse_backend"}
    assert "Apache License" in (metadata / "licenses/LICENSE").read_text()
    lines = (metadata / "METADATA").read_text().splitlines()
    assert {"License-Expression: Apache-2.0", f"Version: {VERSION}"} <= set(lines)


def test_nothing_of_the_checkout_is_needed(installed: Path, tmp_path: Path) -> None:
    program = "import sparsec, sparsec.passes, sparsec.backends.x86.backend, sparsec.autotune, sparsec.models; print(sparsec.__file__)"
    assert run([installed / "python", "-c", program], tmp_path).startswith(str(installed.parent))
    assert run([installed / "sparsec", "--version"], tmp_path) == f"sparsec {VERSION}\n"


@pytest.mark.slow
def test_the_first_example_is_sparse(installed: Path, tmp_path: Path) -> None:
    """README's first example with an empty cache and no package of an extra: no pruned layer stays dense, nothing is left to torch."""
    example = blocks(README, "python")[0].text
    assert "import sparsec" not in example and 'backend="sparse"' in example
    said = "import sparsec; found = sparsec.explain(fast); print([(x.density, x.stayed_dense) for x in found.layers], len(found.uncovered))"
    base = "import sys; from sparsec.tools.needs import OPTIONAL; sys.modules.update(dict.fromkeys(OPTIONAL))"
    program = f"{base}\n{example}\n{said}\nprint(sparsec.__file__)"
    layers, place = run([installed / "python", "-c", program], tmp_path, SPARSEC_CACHE_DIR=str(tmp_path / "cache")).splitlines()
    assert place.startswith(str(installed.parent)) and layers.endswith("] 0")
    found = ast.literal_eval(layers.removesuffix(" 0"))
    pruned = [dense for density, dense in found if density is not None and density < 0.15]
    assert len(pruned) >= 13 and not any(pruned)


@pytest.mark.slow
def test_the_c_section_of_the_readme(installed: Path, tmp_path: Path) -> None:
    """An artifact made by the installed command brings all that its lines name, and says who made it."""
    (block,) = re.findall(r"^From C\..*?^```\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    line = block.splitlines()[0]
    assert line.startswith("cc ") and "mobilenet.sparsec" in line
    cache = str(tmp_path / "cache")
    run(
        [installed / "sparsec", "compile", "sparsec.models.zoo:mobilenet_v1_90", "-o", "mobilenet.sparsec"],
        tmp_path,
        SPARSEC_CACHE_DIR=cache,
    )
    assert json.loads((tmp_path / "mobilenet.sparsec" / "manifest.json").read_text())["sparsec"] == VERSION
    assert "4000 bytes, begins with" in run(["bash", "-c", line], tmp_path)
