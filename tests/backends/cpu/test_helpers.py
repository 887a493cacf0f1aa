"""The pool of threads of kernel libraries, by itself, with four cores: under the compiler's checks of threads and of memory."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE, SOURCE = Path(__file__).parent, Path(__file__).parents[3] / "backends/cpu"
COMPILER = next(filter(shutil.which, ("gcc", "clang", "cc")), None)
CHECKS = {"threads": "-fsanitize=thread", "memory": "-fsanitize=address,undefined", "none": "-O2"}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (gcc, clang or cc) on PATH")


@pytest.mark.parametrize("checks", CHECKS)
def test_every_share_of_every_group_runs_once_after_those_before_it(checks: str, tmp_path: Path) -> None:
    """Forks are left out under the check of threads, which does not know them."""
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-pthread", CHECKS[checks]]
    command = [str(COMPILER), *flags, "-I", str(SOURCE), str(HERE / "pool_harness.c"), "-ldl", "-o", str(tmp_path / "harness")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "san" in built.stderr:
        pytest.skip(f"{COMPILER} has no such check")
    assert built.returncode == 0, built.stderr
    for forks in (0,) if checks == "threads" else (0, 5):
        done = subprocess.run([tmp_path / "harness", "6", "400", str(forks)], capture_output=True, text=True, timeout=250, check=False)
        assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr
        assert "WARNING" not in done.stderr
