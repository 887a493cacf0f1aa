"""Commands that judge, by their exit code too: bench, compare, bisect, doctor. What one needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from sparsec.cli.console import progress_bar, say, say_json, table_console
from sparsec.cli.opening import check_options, factory_named, opened_model
from sparsec.cli.options import JsonOption, ModelArgument, ShapeOption, ThreadsOption, TuneOption

if TYPE_CHECKING:
    from sparsec.bench import Comparison, RivalResult


def bench(
    model: ModelArgument,
    rivals: Annotated[str, typer.Option(help="Names with commas.")] = "inductor-freezing,onnxruntime,openvino",
    threads: ThreadsOption = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    seconds: Annotated[float, typer.Option(help="Time per rival.")] = 2.0,
    tune: TuneOption = "off",
    inputs: ShapeOption = None,
    json: JsonOption = False,
    fail_below: Annotated[float | None, typer.Option(metavar="RATIO", help="Exit with 1 if ours is not so many times as fast.")] = None,
) -> None:
    """Time a model under several engines, in turns, each in its own process. Ours always takes part.

    Exits with 1 if one of ours fails, nothing else was measured, or --fail-below is not reached over the best dense float32 engine.
    """
    from sparsec.bench import OURS, compare
    from sparsec.doors.factories import is_model_file
    from sparsec.settings import default_threads

    check_options({"tune": tune, "threads": threads})
    factory = factory_named(model, batch, inputs or ())
    names = [name.strip() for name in rivals.split(",") if name.strip()]
    names = names if any(name in OURS for name in names) else [OURS[0], *names]
    with progress_bar() as progress:
        task = progress.add_task("", total=None)
        result = compare(
            factory,
            names,
            threads=threads or default_threads(),
            batch=batch,
            rounds=rounds,
            seconds_per_rival=seconds,
            tune=tune,
            progress=lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
            shapes=() if is_model_file(model) else inputs or (),
        )
    result = replace(result, factory=model)
    typer.echo(result.to_json()) if json else table_console().print(result.table())
    if reason := _missed([rival for rival in result.rivals if rival.name in OURS], result, fail_below):
        Console(stderr=True, soft_wrap=True).print(Text(reason, style="red"))
        raise typer.Exit(1)


def _missed(ours: Sequence[RivalResult], result: Comparison, fail_below: float | None) -> str:
    """Why a comparison is no success, else empty."""
    if failed := [rival.name for rival in ours if not rival.timed]:
        return f"{', '.join(failed)} failed: see below the table."
    others = [rival for rival in result.rivals if rival not in ours]
    if others and not any(rival.timed for rival in others):
        return "No other engine was measured: see below the table."
    if fail_below is None:
        return ""
    ratios = {rival.name: result.ratio(rival.name) for rival in ours}
    low = [name if ratio is None else f"{name} {ratio:.2f}" for name, ratio in ratios.items() if (ratio or 0) < fail_below]
    if result.best_dense is None:
        return f"No dense float32 engine was measured, so nothing is {fail_below:g} times as fast."
    return f"Not {fail_below:g} times as fast as the best dense engine: {', '.join(low)}." if low else ""


def compare(
    model: ModelArgument,
    data: Annotated[Path, typer.Option("--data", metavar="FILE|DIR", help="x.npy, x.npz by input names, or a folder of these.")],
    artifact: Annotated[Path | None, typer.Option(metavar="DIR", help="Compare this artifact, not what is compiled now.")] = None,
    inputs: ShapeOption = None,
    tune: TuneOption = "off",
    threads: ThreadsOption = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference, relative to the largest output.")] = 1e-4,
    json: JsonOption = False,
) -> None:
    """Compare answers on your own data with those of eager mode, or of ONNX Runtime for .onnx files; exits with 1 if they differ.

    Says the largest and mean differences, how often the best classes agree, and the node where a difference begins.
    """
    from sparsec.report.comparing import compare as compared

    check_options({"tune": tune, "threads": threads})
    opened, examples, kwargs = opened_model(model, inputs or ())
    made = compared(opened, examples, kwargs, data, artifact=artifact, tolerance=tolerance, tune=tune, threads=threads)
    typer.echo(made.to_json()) if json else table_console().print(made)
    raise typer.Exit(int(not made.holds))


def bisect(
    model: ModelArgument,
    inputs: ShapeOption = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference, relative to the largest output.")] = 1e-4,
    json: JsonOption = False,
) -> None:
    """Find the first pass that changes the model's answer; exits with 1 if there is one."""
    from sparsec.backends import backend_for
    from sparsec.doors.open import inputs_of, open_model
    from sparsec.ir.pipeline import Context
    from sparsec.passes import PIPELINE
    from sparsec.report.bisect import bisect as first_wrong
    from sparsec.settings import Settings

    opened = opened_model(model, inputs or ())
    captured = open_model(*opened)
    settings = Settings()
    backend = backend_for(settings.target)
    context = Context(settings, backend.offers, backend.layouts, backend.costs(), keep_dense=True)
    culprit = first_wrong(captured.graph_module, inputs_of(captured, *opened[1:]), PIPELINE, context, tolerance)
    if json:
        say_json(culprit=None if culprit is None else culprit.name, passes=[each.name for each in PIPELINE], tolerance=tolerance)
        raise typer.Exit(int(culprit is not None))
    if culprit is None:
        say(f"None of the {len(PIPELINE)} passes changes the answer by more than {tolerance:g}.")
    else:
        say(f"The first pass that changes the answer is {culprit.name}. SPARSEC_DUMP=dir shows the graph before and after it.")
        raise typer.Exit(1)


def doctor(json: JsonOption = False) -> None:
    """Check this machine, its packages and caches; exits with 1 if something is wrong."""
    from sparsec.report.doctor import examine

    checks = examine()
    if json:
        say_json(checks=[asdict(check) for check in checks])
    for check in checks if not json else ():
        say(str(check), "" if check.ok else "red")
    raise typer.Exit(int(not all(check.ok for check in checks)))
