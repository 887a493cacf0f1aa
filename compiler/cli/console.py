"""What the command prints, and how it fails."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer.core import TyperGroup

from sparsec.errors import SparsecError
from sparsec.tools.needs import COMPILER, OPTIONAL, lacking

FAILED = 2


class Reporting(TyperGroup):
    """Prints what a user can cause in red and exits with 2; ``--debug``, anywhere on the line, shows the traceback instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring ``--debug`` to the front, where the group reads it."""
        debug = ["--debug"] if "--debug" in args else []
        return super().parse_args(ctx, [*debug, *(arg for arg in args if arg != "--debug")])

    def invoke(self, ctx: Any) -> Any:
        """Run the command and report its errors."""
        try:
            return super().invoke(ctx)
        except SparsecError as error:
            _report(error, ctx.params.get("debug", False))
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in COMPILER and module not in OPTIONAL:
                raise
            _report(lacking(module), ctx.params.get("debug", False))
        raise typer.Exit(FAILED)


def _report(error: SparsecError, debug: bool) -> None:
    if debug:
        raise error
    Console(stderr=True, soft_wrap=True).print(Text(str(error), style="red"))


def say_json(**values: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(values, allow_nan=False))


def summarise(explanation: Any) -> None:
    """An explanation in a few lines."""
    say(explanation.summary())
    for note in explanation.notes:
        say(f"Note: {note}")


def progress_bar() -> Progress:
    """On standard error, gone when all is done."""
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def table_console() -> Console:
    """Tables keep their full width in files and pipes."""
    from sparsec.run.explanation import WIDTH

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def say(line: str, style: str = "") -> None:
    """One line, whole."""
    Console(soft_wrap=True).print(Text(line, style=style))
