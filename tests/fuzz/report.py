"""Runs a search and writes what it found: a script for each failure, the counts at the end."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from tests.fuzz import child
from tests.fuzz.generate import draw_case
from tests.fuzz.script import body, script
from tests.fuzz.search import Failure, Search


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
    return f"# {what}\n# seen {failure.times} times, first after {failure.found_after:.0f} s\n# {failure.case.to_json()}\n"


def warm_up() -> None:
    """Import here what every child would import again."""
    import sparsec.driver
    import torch._inductor.compile_fx  # noqa: F401

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    child.run(body(draw_case(0, ("onnx",))))
    program = torch.export.export(torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2),)).run_decompositions({})
    torch.compile(program.module(), backend="eager")(torch.ones(1, 2))
    torch._dynamo.reset()
