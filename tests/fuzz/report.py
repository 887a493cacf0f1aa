"""Runs a search and writes what it found: a script for each failure, the counts at the end."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from pathlib import Path

import torch

from tests.fuzz import child, prelude
from tests.fuzz.case import Case, Step
from tests.fuzz.findings import Failure
from tests.fuzz.kernels import Kernels
from tests.fuzz.script import body, script
from tests.fuzz.search import Search
from tests.fuzz.workers import spread

_STEPS = (Step(0, "linear", ((-1, 0),)),)


def search(
    minutes: float, seed: int, doors: tuple[str, ...] = (), without: tuple[str, ...] = (), out: Path | None = None, jobs: int = 1
) -> int:
    """0 if nothing failed, else 1. ``out``: a folder for scripts, which are printed without one."""
    warm_up()
    from sparsec.settings import Settings

    print(f"seed {seed}", flush=True)
    kernels = Kernels.install(Settings().cache_dir / "fuzz")
    found = spread(Search(seed, doors, without, kernels, report=functools.partial(_tell, out)), minutes, jobs)
    print(f"seed {seed}: {found.by_door.total()} cases in {minutes:g} minutes of {jobs} processes, {len(found.failures)} failures")
    print(found, flush=True)
    return bool(found.failures)


def _tell(out: Path | None, failure: Failure) -> None:
    print(failure, flush=True)
    text = script(failure.case, header(failure))
    if out is None:
        print(text)
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{failure.case.seed}.py").write_text(text)


def header(failure: Failure) -> str:
    """Comment at the end of a script: what happened, and the case as data."""
    outcome = failure.outcome
    what = f"{outcome.kind}: {outcome.message[:400]} {outcome.where}".replace("\n", "\n# ")
    return f"# {what}\n# {failure.case.to_json()}\n"


def warm_up() -> None:
    """Do here what every child would do again."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    for name in ("torch", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    import onnxscript  # noqa: F401
    import torch._inductor.compile_fx as inductor

    real, inductor.compile_fx = inductor.compile_fx, child.as_it_is
    for door in ("object", "torch.compile"):
        exec(compile(body(Case(0, door, ("vector",), ((1, 1, 1, 1, 4),), _STEPS, ((0, 0),))), "warm up", "exec"), dict(vars(prelude)))
    torch._dynamo.reset()
    inductor.compile_fx = real
