"""The command ``sparsec``. What a command needs is imported when it runs, so that ``sparsec run`` needs no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsec.cli import checking, farming, inspecting, making
from sparsec.cli.console import Reporting

_VARIABLES = """Environment: SPARSEC_CACHE_DIR (kernels and records), SPARSEC_DUMP (graphs after each pass), SPARSEC_ISA=avx2 (no AVX512),
SPARSEC_STRICT=1 (raise internal errors), TORCH_LOGS=sparsec (a line for each graph)."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from sparsec import __version__

        typer.echo(f"sparsec {__version__}")
        raise typer.Exit


def _command(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """A graph compiler for sparse neural networks."""


app = typer.Typer(
    cls=Reporting,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_VARIABLES,
)
app.callback()(_command)
app.command("compile")(making.compile_model)
app.command()(making.run)
app.command()(inspecting.inspect)
app.command()(making.explain)
app.command()(checking.bench)
app.command()(making.tune)
app.add_typer(farming.app, name="farm")
app.command()(making.export)
app.command()(checking.compare)
app.command()(checking.bisect)
app.command()(checking.doctor)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="sparsec")
