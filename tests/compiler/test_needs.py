"""Where a package is missing, every door says which one and how to install it, and nothing runs dense in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.tools.needs import COMPILER, OPTIONAL, lacking, require

ROOT = Path(__file__).parents[2]
WITHOUT = "import sys; sys.modules[{missing!r}] = None; {program}"


def said(missing: str, program: str, folder: Path) -> str:
    """What a process prints in which a package is not installed."""
    text = WITHOUT.format(missing=missing, program=program)
    environment = {**os.environ, "SPARSEC_STRICT": "0"}
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_the_list_is_that_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)}
    assert {*COMPILER.values()} <= {*project["dependencies"]}
    assert {*OPTIONAL.values()} <= named
    readme = (ROOT / "README.md").read_text()
    slim = [each for each in project["dependencies"] if each not in COMPILER.values()]
    assert all(f'"{each}"' in readme or f'"{each.replace(">=2.0", ">=2")}"' in readme for each in slim)


@pytest.mark.slow
def test_torch_compile_does_not_run_dense_without_the_compiler(tmp_path: Path) -> None:
    """torch itself needs the other packages."""
    program = "import torch; torch.compile(torch.nn.Linear(4, 4).eval(), backend='sparse')(torch.ones(1, 4)); print('ran')"
    found = said("tvm", program, tmp_path)
    assert found.startswith("1 ") and "print('ran')" not in found and "\nran" not in found
    assert "needs tvm" in found and f"pip install '{COMPILER['tvm']}'" in found


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["torch", "tvm", "networkx"])
@pytest.mark.parametrize(
    "program",
    [
        "import sparsec; sparsec.compile",
        "import sys; from sparsec.cli import main; sys.argv[1:] = ['compile', 'sparsec.models.zoo:mobilenet_v1_90', '-o', 'y']; main()",
    ],
    ids=["object", "command"],
)
def test_other_doors_name_the_package(tmp_path: Path, missing: str, program: str) -> None:
    found = said(missing, program, tmp_path)
    assert found.startswith(("1 ", "2 ")) and f"pip install '{COMPILER[missing]}'" in found
    assert "Traceback" not in found or "import sparsec;" in program


@pytest.mark.slow
def test_a_factory_that_needs_a_package(tmp_path: Path) -> None:
    program = "import sys; from sparsec.cli import main; sys.argv[1:] = ['explain', 'sparsec.models.zoo:digits_90']; main()"
    found = said("sklearn", program, tmp_path)
    assert found.startswith("2 ") and "pip install 'scikit-learn>=1.5'" in found and "Traceback" not in found


def test_what_is_there_is_not_missed() -> None:
    require()
    assert "pip install 'scikit-learn>=1.5' 'nonesuch'" in str(lacking("sklearn", "nonesuch"))
