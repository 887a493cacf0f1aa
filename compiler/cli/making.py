"""Commands that make and use artifacts: compile, run, explain, tune, export. What one needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsec.cli.console import say, say_json, summarise, table_console
from sparsec.cli.opening import compile_named
from sparsec.cli.options import (
    ArtifactArgument,
    CacheOption,
    CpuOption,
    DumpOption,
    JsonOption,
    KeyOption,
    ModelArgument,
    PaddingOption,
    PruningOption,
    ShapeOption,
    TargetOption,
    ThreadsOption,
    TrackerOption,
    TuneOption,
    settings_given,
)


def compile_model(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write.")],
    inputs: ShapeOption = None,
    tune: TuneOption = "off",
    threads: ThreadsOption = None,
    remove_padding: PaddingOption = False,
    token_pruning: PruningOption = None,
    target: TargetOption = None,
    cpu: CpuOption = None,
    cache_dir: CacheOption = None,
    dump: DumpOption = None,
    json: JsonOption = False,
) -> None:
    """Compile a model and write an artifact that runs without torch: sparsec compile net.onnx -o net.sparsec --input x=1,3,224,224"""
    options = settings_given(
        remove_padding=remove_padding, token_pruning=token_pruning, target=target, cpu=cpu, cache_dir=cache_dir, dump_dir=dump
    )
    compiled, seconds = compile_named(model, inputs or (), tune, threads, options)
    compiled.save(output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    if json:
        say_json(artifact=str(output), bytes=size, seconds=seconds, explanation=compiled.explain().described())
        return
    say(f"{output}: {size / 2**20:.1f} MiB, compiled in {seconds:.1f} s")
    summarise(compiled.explain())


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
    say(f"{output}: {shapes}")


def explain(
    what: Annotated[str, typer.Argument(metavar="ARTIFACT|MODEL")],
    inputs: ShapeOption = None,
    tune: TuneOption = "off",
    threads: ThreadsOption = None,
    remove_padding: PaddingOption = False,
    token_pruning: PruningOption = None,
    target: TargetOption = None,
    cpu: CpuOption = None,
    cache_dir: CacheOption = None,
    dump: DumpOption = None,
    json: JsonOption = False,
) -> None:
    """Say for each layer what was found, which kernel won, and why it stayed dense if it did."""
    from sparsec.doors.factories import is_model_file
    from sparsec.run.artifact import read_explanation

    is_artifact = not is_model_file(what) and (":" not in what or Path(what).exists())
    options = settings_given(
        remove_padding=remove_padding, token_pruning=token_pruning, target=target, cpu=cpu, cache_dir=cache_dir, dump_dir=dump
    )
    explanation = read_explanation(what) if is_artifact else compile_named(what, inputs or (), tune, threads, options)[0].explain()
    typer.echo(explanation.to_json()) if json else table_console().print(explanation)


def tune(
    model: ModelArgument,
    inputs: ShapeOption = None,
    level: Annotated[str, typer.Option("--tune", "--level", help="quick or full.")] = "quick",
    threads: ThreadsOption = None,
    target: TargetOption = None,
    cpu: CpuOption = None,
    tracker: TrackerOption = None,
    key: KeyOption = None,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Measure kernels for a model, on this machine or on boards, and keep the records for later compilations."""
    options = settings_given(target=target, cpu=cpu, tracker=tracker, tracker_key=key, cache_dir=cache_dir)
    compiled, seconds = compile_named(model, inputs or (), level, threads, options)
    from sparsec.autotune.database import writable

    directory = cache_dir or _cache_directory()
    kept = writable(directory)
    if json:
        say_json(records=str(directory) if kept else None, seconds=seconds, explanation=compiled.explain().described())
        return
    say(f"tuned in {seconds:.1f} s; records " + (f"are in {directory}" if kept else f"are lost: {directory} cannot be written"))
    summarise(compiled.explain())


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

    made = export_kernels(load(model) if Path(model).is_dir() else compile_named(model, inputs or (), tune, threads)[0], kernels)
    say(f"{kernels}: {len(made)} kernels; `make -C {kernels}` builds and runs their self-tests")
    for kernel in made:
        if kernel.untested:
            say(f"Note: {kernel.symbol} has no self-test: {kernel.untested}")


def _cache_directory() -> Path:
    from sparsec.settings import Settings

    return Settings().cache_dir
