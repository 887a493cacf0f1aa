"""Runs a script in a forked child with a time limit, so that neither a crash nor a hang ends the search."""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from tests.fuzz import prelude
from tests.fuzz.kernels import Kernels

#: Seconds of the clock, and of the processor.
LIMIT, WORK = 600.0, 60
_WITHIN = "/sparsec/"


@dataclass(frozen=True)
class Outcome:
    """How a script ended.

    kind: "ok", "skip" (eager or an exporter fails), "refused" (a reason of ours), "wrong", "raised", "dense" (an internal error that the
    door hid), "crash", "hang". message: without numbers. said: warnings and log messages of ours. where: the last of our lines in the
    traceback.
    """

    kind: str
    message: str = ""
    where: str = ""
    said: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def failed(self) -> bool:
        """Whether it has to be looked at."""
        return self.kind in ("wrong", "raised", "dense", "crash", "hang")

    @property
    def manner(self) -> tuple[str, ...]:
        """Two failures of one manner may have one cause."""
        return self.kind, plain(self.message.partition("relative error")[0]), self.where


def work() -> float:
    """Seconds of the processor that this process and its children have taken."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def plain(message: str) -> str:
    """A message without what differs from case to case: its first lines, no numbers, no names of nodes, nothing in brackets."""
    text = re.sub(r"\([^()]*\)", "()", re.sub(r"/\S+", "PATH", message.strip()[:300]))
    return re.sub(r"[a-z_]*\d[\w.]*", "#", text)


def run(text: str, inductor: bool = False, limit: float = LIMIT, kernels: Kernels | None = None) -> Outcome:
    """Run the body of a script (see `script.body`) in a child of this process; ``kernels``: those installed here."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    started = time.monotonic()
    process = context.Process(target=_child, args=(text, inductor, theirs, kernels), daemon=True)
    process.start()
    theirs.close()
    outcome, fresh = _received(ours, limit)
    if outcome is None:
        process.join(2)
        hung = process.is_alive() or process.exitcode == -signal.SIGXCPU
        outcome = Outcome("hang") if hung else Outcome("crash", f"signal {-process.exitcode}")  # type: ignore[operator]
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
    ours.close()
    if kernels is not None:
        kernels.met(fresh, text)
    return Outcome(outcome.kind, outcome.message, outcome.where, outcome.said, time.monotonic() - started)


def _received(connection: Connection, limit: float) -> tuple[Outcome | None, set[str]]:
    try:
        return connection.recv() if connection.poll(limit) else (None, set())
    except EOFError:
        return None, set()


def _child(text: str, inductor: bool, connection: Connection, kernels: Kernels | None) -> None:
    faulthandler.disable()
    os.environ["SPARSEC_STRICT"] = "1"
    resource.setrlimit(resource.RLIMIT_CPU, (WORK, WORK))
    quiet = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(quiet.fileno(), 1)
    os.dup2(quiet.fileno(), 2)
    sys.stdout = sys.stderr = io.StringIO()
    if not inductor:
        import torch._inductor.compile_fx as inductor_module

        inductor_module.compile_fx = as_it_is
    outcome = outcome_of(lambda: exec(compile(text, "script", "exec"), {**vars(prelude), "__name__": "script"}))
    connection.send((outcome, kernels.fresh if kernels is not None else set()))
    connection.close()
    os._exit(0)


def as_it_is(graph: Any, *_: Any, **__: Any) -> Any:
    """In place of Inductor."""
    return graph


def outcome_of(call: Callable[[], Any]) -> Outcome:
    """Call and judge: what is raised, and what is said meanwhile."""
    from sparsec import errors

    log = io.StringIO()
    logger = logging.getLogger("sparsec")
    logger.addHandler(logging.StreamHandler(log))
    broken = _broken(errors)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
            kind, message, where = "ok", "", ""
        except prelude.Wrong as error:
            kind, message, where = "wrong", str(error), ""
        except prelude.Skip as error:
            kind, message, where = "skip", str(error), ""
        except BaseException as error:
            kind = "refused" if _honest(error, errors) else "raised"
            message, where = f"{type(error).__name__}: {error}", _place(error)
    ours = [str(entry.message) for entry in caught if _WITHIN in entry.filename or "compiled dense" in str(entry.message)]
    said = tuple(dict.fromkeys([*log.getvalue().splitlines(), *ours]))
    hidden = [line for line in said if any(text.splitlines()[0] in line for text in broken) or "internal error" in line]
    if kind in ("ok", "skip") and hidden:
        kind, message = "dense", hidden[0]
    return Outcome(kind, message, where, said)


def _honest(error: BaseException, errors: Any) -> bool:
    """Whether an exception is a refusal: a model that cannot be a graph, or be saved, or has no tokens, or a call of another size."""
    begins = (errors.ArtifactError, "The model cannot be saved"), (errors.InvalidInput, "Token pruning")
    said = any(isinstance(error, kind) and str(error).startswith(text) for kind, text in begins)
    return said or isinstance(error, prelude.Refused | errors.UnsupportedModel)


def _broken(errors: Any) -> list[str]:
    """Texts of the errors that mean a fault of ours and that a door may turn into a fallback; grows while they are made."""
    texts: list[str] = []
    for kind in (errors.VerificationError, errors.PipelineError):
        make = errors.SparsecError.__init__

        def record(self: Any, what: str, _make: Any = make, **parts: str) -> None:
            _make(self, what, **parts)
            texts.append(str(self))

        kind.__init__ = record
    return texts


def _place(error: BaseException) -> str:
    """The innermost function of ours in the traceback."""
    frames = []
    current: BaseException | None = error
    while current is not None:
        frames += [f for f in traceback.extract_tb(current.__traceback__) if _WITHIN in f.filename]
        current = current.__cause__ or current.__context__
        if frames:
            break
    return f"{frames[-1].filename.rpartition(_WITHIN)[2]}:{frames[-1].name}" if frames else ""
