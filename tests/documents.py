"""Code blocks of README.md and of docs/, run as a reader pastes them: page by page, in order, in an empty folder.

Python blocks of a page share a namespace. A block with ``title="net.py"`` is a file of that name. Lines of an ``sh`` block are commands;
``# exits with 1`` at the end of one says so. A block is not run where the line before it begins with ``NOT_RUN``, and says why.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from sparsec.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: Languages of blocks that are run or written to files, and of those that only show something.
RUN, SHOWN = ("python", "sh", "c"), ("text", "console", "json")
NOT_RUN = "Not run by the tests:"
_FENCE = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"# exits with (\d+)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is ("": none), its text, the line where that begins, why it is not run."""

    language: str
    title: str
    text: str
    line: int
    reason: str = ""


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The blocks of a page in order, or those in one language."""
    text = page.read_text()
    return [block for found in _FENCE.finditer(text) if language in (None, (block := _block(text, found)).language)]


def _block(text: str, found: re.Match[str]) -> Block:
    before = next((line for line in reversed(text[: found.start()].splitlines()) if line.strip()), "")
    reason = before.removeprefix(NOT_RUN).strip() if before.startswith(NOT_RUN) else ""
    return Block(found[1], found[2] or "", found[3], text.count("\n", 0, found.start()) + 2, reason)


def commands(block: Block) -> Iterator[str]:
    """The lines of an ``sh`` block that are commands."""
    yield from (line.strip() for line in block.text.splitlines() if line.strip() and not line.startswith("#"))


def run_page(page: Path, folder: Path) -> None:
    """Run all blocks of a page in ``folder``, which is the current one. AssertionError for a command with another exit code."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.reason or block.language not in RUN:
            continue
        if block.title:
            (folder / block.title).write_text(block.text)
        elif block.language == "python":
            # Line numbers, and the source that tracebacks show, are the page's.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        else:
            for line in commands(block):
                _run_command(line, folder)


def _run_command(line: str, folder: Path) -> None:
    """``sparsec`` runs in this process, which has torch already; anything else in a shell that finds this environment's programs."""
    expected = int(found[1]) if (found := _EXIT.search(line)) else 0
    if line.startswith("sparsec "):
        result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        code, said = result.exit_code, f"{result.output}{result.exception or ''}"
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", line], cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=280, check=False
        )
        code, said = done.returncode, done.stdout + done.stderr
    assert code == expected, f"{line}\nexits with {code}, not {expected}\n{said}"
