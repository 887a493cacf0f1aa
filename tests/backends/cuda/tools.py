"""Triton, which stands beside the environment that tests run in: torch would find it there, and Inductor ask it for GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[3] / "build" / "cuda"
needs_triton = pytest.mark.skipif(not (TOOLS / "triton").exists(), reason="`make cuda-tools` installs Triton in build/cuda")


def told(module: str, *arguments: str, **environment: str) -> Any:
    """What a module of this folder writes as JSON in its last line, run with Triton."""
    path = os.pathsep.join((str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])))
    command = [sys.executable, "-m", f"tests.backends.cuda.{module}", *arguments]
    known = {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(TOOLS.parent / "cuda-cache")}
    done = subprocess.run(command, env={**os.environ, **known, **environment}, capture_output=True, text=True, timeout=900, check=False)
    assert not done.returncode, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
