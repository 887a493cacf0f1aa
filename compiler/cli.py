"""The command ``sparsec``. What a command needs is imported when it runs, so that ``sparsec run`` needs no torch."""

from __future__ import annotations

import json as _json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer.core import TyperGroup

from sparsec.errors import InvalidInput, SparsecError
from sparsec.tools.needs import COMPILER, OPTIONAL, lacking

if TYPE_CHECKING:
    from sparsec.bench import Comparison, RivalResult

FAILED = 2

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
TargetOption = Annotated[str | None, typer.Option(help="The machine to make kernels for: native (this one), x86 or reference.")]
CacheOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Kernels and records, instead of SPARSEC_CACHE_DIR.")]
DumpOption = Annotated[Path | None, typer.Option("--dump", metavar="DIR", help="Write the graph after each pass.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of the network, by default OMP_NUM_THREADS or all cores.")]


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


_VARIABLES = """Environment: SPARSEC_CACHE_DIR (kernels and records), SPARSEC_DUMP (graphs after each pass), SPARSEC_ISA=avx2 (no AVX512),
SPARSEC_STRICT=1 (raise internal errors), TORCH_LOGS=sparsec (a line for each graph)."""

app = typer.Typer(
    cls=Reporting,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_VARIABLES,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from sparsec import __version__

        typer.echo(f"sparsec {__version__}")
        raise typer.Exit


@app.callback()
def sparsec(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """A graph compiler for sparse neural networks."""


@app.command("compile")
def compile_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write.")],
    inputs: ShapeOption = None,
    tune: TuneOption = "off",
    threads: ThreadsOption = None,
    remove_padding: PaddingOption = False,
    token_pruning: PruningOption = None,
    target: TargetOption = None,
    cache_dir: CacheOption = None,
    dump: DumpOption = None,
    json: JsonOption = False,
) -> None:
    """Compile a model and write an artifact that runs without torch: sparsec compile net.onnx -o net.sparsec --input x=1,3,224,224"""
    options = _options(remove_padding=remove_padding, token_pruning=token_pruning, target=target, cache_dir=cache_dir, dump_dir=dump)
    compiled, seconds = _compiled(model, inputs or (), tune, threads, options)
    compiled.save(output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    if json:
        _print_json(artifact=str(output), bytes=size, seconds=seconds, explanation=compiled.explain().described())
        return
    _print(f"{output}: {size / 2**20:.1f} MiB, compiled in {seconds:.1f} s")
    _summarise(compiled.explain())


@app.command()
def run(
    artifact: ArtifactArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="y.npy, or y.npz for several results.")],
    inputs: Annotated[list[str], typer.Option("--input", metavar="[NAME=]FILE", help="float32 arrays: x.npy.")],
    threads: ThreadsOption = None,
) -> None:
    """Run an artifact on arrays from files."""
    from sparsec.doors.factories import named
    from sparsec.doors.npy import read_array, write_arrays
    from sparsec.run.artifact import load

    model = load(artifact, threads)
    given = [(name, read_array(Path(file))) for name, file in map(named, inputs)]
    results = model.flat(*(x for name, x in given if not name), **{name: x for name, x in given if name})
    write_arrays(output, results)
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in results.items())
    _print(f"{output}: {shapes}")


@app.command()
def explain(
    what: Annotated[str, typer.Argument(metavar="ARTIFACT|MODEL")],
    inputs: ShapeOption = None,
    tune: TuneOption = "off",
    threads: ThreadsOption = None,
    remove_padding: PaddingOption = False,
    token_pruning: PruningOption = None,
    target: TargetOption = None,
    cache_dir: CacheOption = None,
    dump: DumpOption = None,
    json: JsonOption = False,
) -> None:
    """Say for each layer what was found, which kernel won, and why it stayed dense if it did."""
    from sparsec.doors.factories import is_model_file
    from sparsec.run.artifact import read_explanation

    is_artifact = not is_model_file(what) and (":" not in what or Path(what).exists())
    options = _options(remove_padding=remove_padding, token_pruning=token_pruning, target=target, cache_dir=cache_dir, dump_dir=dump)
    explanation = read_explanation(what) if is_artifact else _compiled(what, inputs or (), tune, threads, options)[0].explain()
    typer.echo(explanation.to_json()) if json else _table_console().print(explanation)


@app.command()
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

    factory = _factory(model, batch, inputs or ())
    names = [name.strip() for name in rivals.split(",") if name.strip()]
    names = names if any(name in OURS for name in names) else [OURS[0], *names]
    with _progress() as progress:
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
    typer.echo(result.to_json()) if json else _table_console().print(result.table())
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


@app.command()
def tune(
    model: ModelArgument,
    inputs: ShapeOption = None,
    level: Annotated[str, typer.Option("--tune", "--level", help="quick or full.")] = "quick",
    threads: ThreadsOption = None,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Measure kernels for a model on this machine and keep the records for later compilations."""
    compiled, seconds = _compiled(model, inputs or (), level, threads, _options(cache_dir=cache_dir))
    from sparsec.autotune.database import writable

    directory = cache_dir or _cache_directory()
    kept = writable(directory)
    if json:
        _print_json(records=str(directory) if kept else None, seconds=seconds, explanation=compiled.explain().described())
        return
    _print(f"tuned in {seconds:.1f} s; records " + (f"are in {directory}" if kept else f"are lost: {directory} cannot be written"))
    _summarise(compiled.explain())


@app.command()
def export(
    model: ModelArgument,
    kernels: Annotated[Path, typer.Option("--kernels", metavar="DIR", help="The folder to write to.")],
    inputs: ShapeOption = None,
    tune: TuneOption = "off",
    threads: ThreadsOption = None,
) -> None:
    """Write each kernel that a model calls as a C library with its header, what is known of it, and a self-test."""
    from sparsec.autotune.export import export_kernels
    from sparsec.run.artifact import load

    made = export_kernels(load(model) if Path(model).is_dir() else _compiled(model, inputs or (), tune, threads)[0], kernels)
    _print(f"{kernels}: {len(made)} kernels; `make -C {kernels}` builds and runs their self-tests")
    for kernel in made:
        if kernel.untested:
            _print(f"Note: {kernel.symbol} has no self-test: {kernel.untested}")


@app.command()
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

    opened, examples, kwargs = _opened(model, inputs or ())
    made = compared(opened, examples, kwargs, data, artifact=artifact, tolerance=tolerance, tune=tune, threads=threads)
    typer.echo(made.to_json()) if json else _table_console().print(made)
    raise typer.Exit(int(not made.holds))


@app.command()
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

    opened = _opened(model, inputs or ())
    captured = open_model(*opened)
    settings = Settings()
    backend = backend_for(settings.target)
    context = Context(settings, backend.offers, backend.layouts, backend.costs(), keep_dense=True)
    culprit = first_wrong(captured.graph_module, inputs_of(captured, *opened[1:]), PIPELINE, context, tolerance)
    if json:
        _print_json(culprit=None if culprit is None else culprit.name, passes=[each.name for each in PIPELINE], tolerance=tolerance)
        raise typer.Exit(int(culprit is not None))
    if culprit is None:
        _print(f"None of the {len(PIPELINE)} passes changes the answer by more than {tolerance:g}.")
    else:
        _print(f"The first pass that changes the answer is {culprit.name}. SPARSEC_DUMP=dir shows the graph before and after it.")
        raise typer.Exit(1)


@app.command()
def doctor(json: JsonOption = False) -> None:
    """Check this machine, its packages and caches; exits with 1 if something is wrong."""
    from sparsec.report.doctor import examine

    checks = examine()
    if json:
        _print_json(checks=[asdict(check) for check in checks])
    for check in checks if not json else ():
        _print(str(check), "" if check.ok else "red")
    raise typer.Exit(int(not all(check.ok for check in checks)))


def _options(*, token_pruning: str | None = None, **given: Any) -> dict[str, Any]:
    """Fields of ``Settings``; what was not given is left to the environment. InvalidInput for what is no JSON object."""
    if token_pruning is not None:
        try:
            given["token_pruning"] = dict(_json.loads(token_pruning))
        except (ValueError, TypeError) as error:
            hint = """Write --token-pruning '{"keep": 0.5, "after": [3, 6]}'."""
            raise InvalidInput("--token-pruning takes a JSON object.", why=str(error), hint=hint) from error
    return {name: value for name, value in given.items() if value}


def _print_json(**values: Any) -> None:
    typer.echo(_json.dumps(values, allow_nan=False))


def _compiled(
    model: str, shapes: Sequence[str], tune: str, threads: int | None, options: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Any, float]:
    """The compiled model and the seconds that took."""
    opened = _opened(model, shapes)
    from sparsec import driver

    begin = time.perf_counter()
    return driver.compile(*opened, **{**options, "tune": tune, "threads": threads}), time.perf_counter() - begin


def _opened(model: str, shapes: Sequence[str]) -> tuple[Any, ...]:
    """A model with its example inputs, as ``sparsec.compile`` takes them."""
    from sparsec.doors.factories import checked_path, is_model_file, make_model

    if not is_model_file(model):
        return make_model(model, shapes)
    path = checked_path(model)
    from sparsec.doors.open import with_shapes

    return with_shapes(path, shapes)


def _factory(model: str, batch: int, shapes: Sequence[str]) -> str:
    """The name of a factory that a benchmark's processes can call, tried once."""
    from sparsec.doors.factories import checked_path, is_model_file, make_model

    if not is_model_file(model):
        make_model(model, shapes)
        return model
    if shapes:
        raise InvalidInput("A model file has its shapes.", where=model, hint="Give --batch instead of --input.")
    path = checked_path(model)
    from sparsec.doors.file_factories import name_of, opened

    opened(path, batch)
    return name_of(path, batch)


def _summarise(explanation: Any) -> None:
    _print(explanation.summary())
    for note in explanation.notes:
        _print(f"Note: {note}")


def _cache_directory() -> Path:
    from sparsec.settings import Settings

    return Settings().cache_dir


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def _table_console() -> Console:
    """Tables keep their full width in files and pipes."""
    from sparsec.run.explanation import WIDTH

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _print(line: str, style: str = "") -> None:
    Console(soft_wrap=True).print(Text(line, style=style))


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="sparsec")


if __name__ == "__main__":
    main()
