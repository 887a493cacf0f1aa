"""The torch.compile door on interpreters whose dictionaries have no stamps, where Dynamo keeps its own guards: 3.11 plays one of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.doors.torch_compile import stamps

ROOT = Path(__file__).parents[2]
FILES = [f"tests/compiler/test_torch_{name}.py" for name in ("backend", "watch", "weights", "writes")]


@pytest.mark.slow
def test_the_tests_of_the_door_hold() -> None:
    command = [sys.executable, "-m", "pytest", "--without-stamps", "-m", "not slow", "-p", "no:cacheprovider", "-rs", *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "have no stamps: Dynamo keeps its guards" in done.stdout


def test_what_is_left_out_then_is_what_is_there_now(pytestconfig: pytest.Config) -> None:
    """The option does what it says, and nothing else turns the stamps off on the interpreter that has them."""
    assert stamps.can_read() == (sys.version_info[:2] == (3, 11) and not pytestconfig.getoption("--without-stamps"))
