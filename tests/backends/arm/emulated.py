"""Programs for ARM run here: built by a cross compiler, loaded by the C loader, emulated by qemu."""

from __future__ import annotations

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


@cache
def harness(loader: Path = _LOADER) -> Path:
    """``files_harness.c`` with the C loader, for ARM. ``loader``: a folder with its files."""
    made = Path(mkdtemp(prefix="sparsec-arm-")) / "harness"
    sources = [_HERE / "files_harness.c", loader / "sparsec.c"]
    subprocess.run([COMPILER, "-O2", "-Wall", "-Werror", "-I", loader, *sources, "-ldl", "-lpthread", "-o", made], check=True)
    return made


def emulate(command: Sequence[str | Path], cpu: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a program for ARM on a processor of this name."""
    line = [EMULATOR, "-L", LIBRARIES, "-cpu", cpu, *command]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)


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
