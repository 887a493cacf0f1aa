"""Folders of processes: removed with them, whatever ended them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsec.tools.scratch import Scratch, sweep

HOLDING = """
import sys, time
from pathlib import Path
from sparsec.tools.scratch import Scratch
made = Scratch(Path(sys.argv[1]))
(made.path / "weights").write_bytes(b"x")
print(made.path, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


def holding(home: Path, how: str) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDING, home, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_ends_with_its_context(tmp_path: Path) -> None:
    with Scratch(tmp_path) as made:
        (made.path / "inner").mkdir()
        assert made.path.parent == tmp_path
        assert made.path.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_ends_with_its_process(tmp_path: Path) -> None:
    process, made = holding(tmp_path, "end")
    assert process.wait(30) == 0
    assert made.name and not made.exists()


def test_what_a_killed_process_leaves_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    killed, left = holding(tmp_path, "wait")
    living, kept = holding(tmp_path, "wait")
    (tmp_path / "sparsec-other").mkdir()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        sweep(tmp_path)
        assert left.exists(), "younger than a minute: it may not be locked yet"
        sweep(tmp_path, settled=-1.0)
        assert not left.exists()
        assert (kept / "weights").exists() and (tmp_path / "sparsec-other").exists()
    finally:
        living.kill()
        living.wait(30)


def test_old_leftovers_go_when_the_next_folder_is_made(tmp_path: Path) -> None:
    killed, left = holding(tmp_path, "wait")
    killed.kill()
    killed.wait(30)
    os.utime(left, (time.time() - 3600,) * 2)
    with Scratch(tmp_path):
        assert not left.exists()


def test_a_forked_child_removes_nothing(tmp_path: Path) -> None:
    made = Scratch(tmp_path)
    child = os.fork()
    if not child:
        made.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert made.path.exists()
    made.remove()
    assert not made.path.exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").touch()
    (tmp_path / "sparsec-scratch-x").symlink_to(tmp_path / "precious")
    sweep(tmp_path, settled=-1.0)
    assert (tmp_path / "precious" / "data").exists()


@pytest.mark.parametrize("home", [Path("/nowhere"), Path("/proc")])
def test_places_that_cannot_be_written(home: Path) -> None:
    sweep(home)
    with pytest.raises(OSError, match=r".*"):
        Scratch(home)
