"""Arguments and options that several commands have, and settings from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsec.errors import InvalidInput

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="model.onnx, model.pt2 or module:factory, a function returning a model or (model, inputs).")
]
ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that `sparsec compile` wrote.")]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME=SHAPE", help="Shape of an example input, x=1,3,224,224, or of a file its values, axes=axes.npy."),
]
TuneOption = Annotated[str, typer.Option(help="off, quick or full.")]
PaddingOption = Annotated[bool, typer.Option("--remove-padding", help="Run each sentence of a padded batch with its own tokens.")]
PruningOption = Annotated[str | None, typer.Option(metavar="JSON", help='Leave tokens out, which changes answers: {"keep": 0.5}.')]
TargetOption = Annotated[str | None, typer.Option(help="The machine to make kernels for: native (this one), x86, arm or reference.")]
CpuOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Its processor, where it is not this one: cortex-a76, neoverse-n1, x86-64-v3, ...; several for an artifact."
    ),
]
TrackerOption = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Measure on boards of this tracker, not here.")]
KeyOption = Annotated[str | None, typer.Option(metavar="KEY", help="Which of the tracker's boards.")]
CacheOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Kernels and records, instead of SPARSEC_CACHE_DIR.")]
DumpOption = Annotated[Path | None, typer.Option("--dump", metavar="DIR", help="Write the graph after each pass.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of the network, by default OMP_NUM_THREADS or all cores.")]


def settings_given(*, token_pruning: str | None = None, cpu: Sequence[str] | None = None, **given: Any) -> dict[str, Any]:
    """Fields of ``Settings``; what was not given is left to the environment. InvalidInput for what is no JSON object.

    ``cpu``: given once or more, each with one name or several with commas.
    """
    given["cpu"] = [name.strip() for names in cpu or () for name in names.split(",")]
    if token_pruning is not None:
        try:
            given["token_pruning"] = dict(json.loads(token_pruning))
        except (ValueError, TypeError) as error:
            hint = """Write --token-pruning '{"keep": 0.5, "after": [3, 6]}'."""
            raise InvalidInput("--token-pruning takes a JSON object.", why=str(error), hint=hint) from error
    return {name: value for name, value in given.items() if value}
