"""A measuring process ends with its parent, also in the middle of a request that never ends."""

import subprocess
import sys
import time
from pathlib import Path

CHILD = """
from sparsec.tools.json_lines import serve
def answer(request):
    while True:
        pass
serve(answer)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE)
child.stdin.write(b"{{}}\\n")
child.stdin.flush()
time.sleep(1)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_takes_its_child_along() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    status = Path("/proc") / parent.stdout.readline().strip() / "status"
    assert "State:\tR" in status.read_text()
    parent.kill()
    parent.wait(30)
    end = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert not status.exists() or "State:\tZ" in status.read_text()
