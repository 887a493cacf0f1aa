"""The farm's commands: what they print of a tracker, what they start and end, whom they let in."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsec.autotune.tracker import Tracker
from sparsec.errors import MachineError
from tests.autotune.boards import free_ports
from tests.compiler.cli.shop import Compiled, Invoke

SUMMARY = {
    "server_info": [{"key": "server:pi", "addr": ["10.0.0.3", 9090]}, {"key": "server:pi", "addr": ["10.0.0.2", 9091]}],
    "queue_info": {"pi": {"free": 1, "pending": 3}, "gone": {"free": 0, "pending": 0}},
}


def test_status(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "summary", lambda self: SUMMARY)
    shown = invoke("farm", "status", "--tracker", "here:1").stdout
    assert shown.startswith("here:1: 2 boards\n")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert cells == [["pi", "10.0.0.2:9091"], ["pi", "10.0.0.3:9090"], ["gone", "0", "0", "0"], ["pi", "2", "1", "3"]]
    said = json.loads(invoke("farm", "status", "--json").stdout)
    assert said["boards"] == [{"key": "pi", "address": "10.0.0.2:9091"}, {"key": "pi", "address": "10.0.0.3:9090"}]
    assert said["keys"]["pi"] == {"boards": 2, "free": 1, "waiting": 3}


def test_status_without_a_tracker(invoke: Invoke) -> None:
    (port,) = free_ports(1)
    done = invoke("farm", "status", "--tracker", f"127.0.0.1:{port}")
    assert done.exit_code == 2 and f"No tracker answers at 127.0.0.1:{port}." in done.output


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str | None]]:
    """What would be served; its processes have ended at once."""
    asked: list[tuple[str, int, str | None]] = []

    class Ended:
        def poll(self) -> int:
            return 0

    @contextlib.contextmanager
    def serving(host: str, port: int, key: str | None) -> object:
        asked.append((host, port, key))
        yield [Ended()]

    monkeypatch.setattr("sparsec.autotune.serving.serving", serving)
    monkeypatch.setattr("sparsec.cli.farming.require", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    yield asked
    signal.signal(signal.SIGTERM, before)


def test_nothing_listens_beyond_this_machine_unless_asked(invoke: Invoke, served: list[tuple[str, int, str | None]]) -> None:
    done = invoke("farm", "serve")
    assert served == [("127.0.0.1", 9190, None)] and "Warning" not in done.output and done.exit_code == 1
    assert "python -m tvm.exec.rpc_server --tracker 127.0.0.1:9190 --key KEY" in done.output
    assert "A process of TVM's has ended." in done.output
    done = invoke("farm", "serve", "--host", "0.0.0.0", "--port", "9000", "--key", "me")
    assert served[1:] == [("0.0.0.0", 9000, "me")] and "Warning: whoever reaches 0.0.0.0:9000" in done.output


def test_tune_names_boards(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    given = ("--target", "arm", "--cpu", "cortex-a72", "--tracker", "here:1", "--key", "pi")
    assert invoke("tune", "shop_of_models:both", "--cache-dir", tmp_path, *given).exit_code == 0
    wanted = {"target": "arm", "cpu": ["cortex-a72"], "tracker": "here:1", "tracker_key": "pi", "cache_dir": tmp_path}
    assert calls[0].options == {"tune": "quick", "threads": None, **wanted}
    for half in (given[4:6], given[6:]):
        done = invoke("tune", "shop_of_models:both", *half)
        assert done.exit_code == 2 and "Boards are named by a tracker and a key." in done.output


@pytest.mark.slow
def test_serve_makes_a_board_of_this_machine_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tornado")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "sparsec", "farm", "serve", "--port", str(port), "--key", "me"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == f"tracker at 127.0.0.1:{port}, this machine serves 'me'\n"
        tracker = Tracker(f"127.0.0.1:{port}")
        assert tracker.boards("me") == 1
        again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert again.returncode == 2 and f"No tracker can listen at 127.0.0.1:{port}." in again.stderr
    finally:
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
    time.sleep(0.5)
    with pytest.raises(MachineError, match="No tracker answers"):
        tracker.summary()
