"""Runs a search and writes what it found: a script for each failure, the counts at the end."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.fuzz import child, prelude
from tests.fuzz.case import Case, Step
from tests.fuzz.script import body, script
from tests.fuzz.search import Failure, Search

_STEPS = (Step(0, "linear", ((-1, 0),)),)


def search(minutes: float, seed: int, doors: tuple[str, ...] = (), without: tuple[str, ...] = (), out: Path | None = None) -> int:
    """0 if nothing failed, else 1. ``out``: a folder for scripts, which are printed without one."""
    warm_up()
    print(f"seed {seed}", flush=True)
    found = Search(seed, doors, without, tell=lambda line: print(line, flush=True))
    for number, failure in enumerate(found.run(minutes)):
        text = script(failure.case, header(failure))
        if out is None:
            print(f"\n# ---- failure {number}\n{text}")
        else:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{seed}_{number}.py").write_text(text)
    print(found.summary(), flush=True)
    return bool(found.failures)


def header(failure: Failure) -> str:
    """Comment at the end of a script: what happened, and the case as data."""
    outcome = failure.outcome
    what = f"{outcome.kind}: {outcome.message[:400]} {outcome.where}".replace("\n", "\n# ")
    return f"# {what}\n# seen {failure.times} times, first after {failure.found_after[0]:.0f} s\n# {failure.case.to_json()}\n"


def warm_up() -> None:
    """Do here what every child would do again, and make compiling kernels cheap: only those that a program runs."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    import onnxscript  # noqa: F401
    import torch._inductor.compile_fx as inductor

    from sparsec import driver

    # TVM's parser asks for the stack of callers and reads the source of each of them.
    inspect.stack = functools.partial(inspect.stack, 0)
    driver._kernels = _used
    real, inductor.compile_fx = inductor.compile_fx, child.as_it_is
    exec(compile(body(Case(0, "object", ("vector",), ((1, 1, 1, 1, 4),), _STEPS, ((0, 0),))), "warm up", "exec"), dict(vars(prelude)))
    exec(
        compile(body(Case(0, "torch.compile", ("vector",), ((1, 1, 1, 1, 4),), _STEPS, ((0, 0),))), "warm up", "exec"), dict(vars(prelude))
    )
    torch._dynamo.reset()
    inductor.compile_fx = real


def _used(lowered: Any, backend: Any) -> list[Any]:
    used = {call.source.symbol: call.source for group in lowered.plan.groups for call in group.calls}
    return [used[symbol] for symbol in sorted(used)]
