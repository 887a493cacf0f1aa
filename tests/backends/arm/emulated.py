"""Programs for ARM run here: built by a cross compiler and loaded by the C loader, or by Python for ARM; emulated by qemu."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from sparsec.backends.base import Machine
from sparsec.run.artifact import save
from sparsec.run.program import Program

COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-gcc", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"
_HERE, _LOADER = Path(__file__).parent, Path(__file__).parents[3] / "compiler/run/c"
#: Of tests that run programs for ARM.
needed = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"no {COMPILER} or no {EMULATOR} on PATH (make arm-tools installs them)",
)
#: Made by python.sh: Python with the C library, and packages.
_PYTHON = Path(__file__).parents[3] / "build/arm"
#: Of tests that run Python for ARM.
python_needed = pytest.mark.skipif(
    not ((_PYTHON / "site/complete").is_file() and shutil.which(EMULATOR)),
    reason=f"no Python for ARM in build/arm (make arm-python puts it there), or no {EMULATOR} on PATH",
)


@cache
def harness(loader: Path = _LOADER) -> Path:
    """``files_harness.c`` with the C loader, for ARM. ``loader``: a folder with its files."""
    made = Path(mkdtemp(prefix="sparsec-arm-")) / "harness"
    sources = [_HERE / "files_harness.c", loader / "sparsec.c"]
    subprocess.run([COMPILER, "-O2", "-Wall", "-Werror", "-I", loader, *sources, "-ldl", "-lpthread", "-o", made], check=True)
    return made


def emulate(
    command: Sequence[str | Path], cpu: str, timeout: float = 600, libraries: str | Path = LIBRARIES, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program for ARM on a processor of this name."""
    line = [EMULATOR, "-L", libraries, "-cpu", cpu, *command]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False)


def python(program: str, arguments: Sequence[str | Path], cpu: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in Python for ARM that may import numpy and sparsec. ``folder``: to be changed."""
    if not (folder / "sparsec").exists():
        (folder / "sparsec").symlink_to(_LOADER.parents[1])
    # Nothing is written beside the source; one thread, as everywhere in tests.
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{_PYTHON / 'site'}"}
    command = [_PYTHON / "root/usr/bin/python3", "-c", program, *arguments]
    return emulate(command, cpu, libraries=_PYTHON / "root", **quiet)


def run(
    folder: Path, program: Program, library: Path, machine: Machine, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], cpu: str
) -> None:
    """Run a program on one sample of each input; ``outputs`` hold what it finds there and get what it leaves."""
    structure = {"tuple": ["leaf"] * len(outputs)}
    save(folder, program, library, None, {"output": structure}, {"arch": machine.arch, "features": machine.features})
    for kind, arrays in (("in", inputs), ("out", outputs)):
        for number, array in enumerate(arrays):
            array.tofile(folder / f"{kind}{number}.bin")
    done = emulate([harness(), folder], cpu)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    for number, array in enumerate(outputs):
        array[...] = np.fromfile(folder / f"out{number}.bin", array.dtype).reshape(array.shape)
    shutil.rmtree(folder)
