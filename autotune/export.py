"""Tuned kernels for other programs: each as a shared library with one C function, a header, what is known of it, and a self-test."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.autotune.database import FILE
from sparsec.autotune.kernel_case import NoReference, case_of, smallest
from sparsec.autotune.kernel_text import TOLERANCE, header, self_test
from sparsec.autotune.record import Record
from sparsec.autotune.records import Place, Records
from sparsec.autotune.tasks import storages, task_key
from sparsec.autotune.tune import place_of, tools
from sparsec.backends.base import Backend
from sparsec.backends.lowering import Lowered
from sparsec.backends.plan import Group, Task
from sparsec.errors import ArtifactError, InvalidInput, unwritten
from sparsec.run import artifact
from sparsec.run.loaded_artifact import LoadedModel
from sparsec.settings import Settings

if TYPE_CHECKING:
    from sparsec.compiled_model import CompiledModel

MAKEFILE = """# `make` builds and runs the self-test of every kernel in this folder.
CFLAGS ?= -O2
TESTS := $(patsubst %_test.c,%.passed,$(wildcard *_test.c))
HEADERS := $(filter-out selftest.h processor.h,$(wildcard *.h))
# A test takes what it calls of all kernels.
LIBRARIES := $(HEADERS:%.h=-l:%.so) -L . -Wl,--as-needed -Wl,-rpath,'$$ORIGIN' -lm

all: $(TESTS)

%.passed: %_test
\t./$< $*_test.bin
\t@touch $@

%_test: %_test.c $(wildcard *.h *.so)
\t$(CC) -std=c11 $(CFLAGS) -I . $< $(LIBRARIES) -o $@

clean:
\trm -f *.passed *_test

.PHONY: all clean
.SECONDARY:
"""


@dataclass(frozen=True)
class Exported:
    """A kernel on disk; ``untested`` says why it has no self-test."""

    symbol: str
    library: Path
    untested: str = ""


def export_kernels(model: CompiledModel | LoadedModel, directory: Path | str) -> list[Exported]:
    """Write every distinct kernel that ``model`` calls to ``directory``, which is made if need be.

    For each: ``NAME.so`` (one C function NAME), ``NAME.h``, ``NAME.json`` (spec, schedule, record, machine, tools, digest of its code),
    ``NAME_test.c`` and ``NAME_test.bin``; and a Makefile that builds and runs all self-tests.

    Returns:
        The kernels by name, each with its library.

    Raises:
        InvalidInput: ``model`` is an artifact, which holds no specs, or has no kernels.
        ArtifactError: the directory cannot be written or holds something else.
        MachineError: linking fails.
    """
    if isinstance(model, LoadedModel):
        why = "An artifact holds programs and one library, neither specs nor schedules."
        raise InvalidInput("Kernels cannot be exported from an artifact.", why=why, hint="Give the model it was compiled from.")
    programs = model._compiled.programs
    if not programs:
        raise InvalidInput("The model has no kernels to export.", why="No region was compiled.", hint="See explain().")
    folder = Path(directory)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "selftest.h").is_file():
        raise ArtifactError("This folder holds something that is no export of kernels.", where=str(folder), hint="Choose another one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Makefile").write_text(MAKEFILE)
        for name in ("selftest.h", "processor.h"):
            shutil.copyfile(Path(artifact.__file__).with_name("c") / name, folder / name)
        done: dict[str, Exported] = {}
        for program in programs:
            exporter = _Exporter(folder, program.lowered, program.backend, model._settings)
            done |= {kernel.symbol: kernel for kernel in exporter.all(done)}
    except OSError as error:
        raise ArtifactError("Kernels cannot be exported.", where=str(folder), **unwritten(error)) from error
    return [done[symbol] for symbol in sorted(done)]


class _Exporter:
    """The kernels of one region."""

    def __init__(self, folder: Path, lowered: Lowered, backend: Backend, settings: Settings) -> None:
        self._folder, self._lowered, self._backend, self._settings = folder, lowered, backend, settings
        self._machine = backend.machine
        calls = [call for group in lowered.plan.groups for call in group.calls]
        self._sources = {call.source.symbol: call.source for call in calls}
        self._writes = {s: frozenset(n for c in calls if c.source.symbol == s for n in c.writes) for s in self._sources}
        self._nodes = {s: list(dict.fromkeys(c.node for c in calls if c.source.symbol == s)) for s in self._sources}

    def all(self, done: Mapping[str, Exported]) -> Iterator[Exported]:
        """Export what is not ``done`` yet."""
        for symbol, (task, groups) in smallest(self._lowered).items():
            if symbol in done:
                continue
            source = self._sources[symbol]
            path = self._folder / f"{symbol}.so"
            digest = self._backend.build_alone(source, path)
            (self._folder / f"{symbol}.h").write_text(header(source, self._writes[symbol], self._machine.features))
            untested = self._write_test(symbol, task, groups)
            (self._folder / f"{symbol}.json").write_text(
                json.dumps(_strict(self._described(symbol, task, digest, untested)), indent=1) + "\n"
            )
            yield Exported(symbol, path, untested)

    def _write_test(self, symbol: str, task: Task | None, groups: Sequence[Group]) -> str:
        """Why there is none, if so."""
        try:
            text, data = self_test(symbol, case_of(task, groups, self._backend), self._machine.features)
        except NoReference as error:
            return f"its layer {groups[0].calls[0].node} has no reference: {error}"
        (self._folder / f"{symbol}_test.c").write_text(text)
        (self._folder / f"{symbol}_test.bin").write_bytes(data)
        return ""

    def _described(self, symbol: str, task: Task | None, digest: str, untested: str) -> dict[str, Any]:
        schedule = None if task is None else self._lowered.schedules.get(task.node)
        record = None if task is None else self._record(task)
        return {
            "symbol": symbol,
            "parameters": [asdict(p) | ({"dtype": "int32"} if p.kind == "i32" else {}) for p in self._sources[symbol].params],
            "layers": self._nodes[symbol],
            "spec": None if task is None else json.loads(task.spec.json()),
            "storages": None if task is None else storages(task),
            "schedule": schedule,
            "record": None if record is None else json.loads(record.to_json()),
            "machine": asdict(self._machine),
            "tools": tools(),
            "source": f"sha256:{digest}",
            "self_test": untested or {"layer": task.node if task else self._nodes[symbol][0], "tolerance": TOLERANCE},
            "build": f"cc program.c -l:{symbol}.so -L . -Wl,-rpath,'$ORIGIN' -lm",
        }

    def _record(self, task: Task) -> Record | None:
        """The latest measurement of the schedule that the layer has."""
        key, schedule = task_key(task), self._lowered.schedules.get(task.node)
        return next((r for r in reversed(self._records) if r.task == key and r.schedule == schedule), None)

    @cached_property
    def _records(self) -> list[Record]:
        """All measurements of this machine, oldest first."""
        if not (self._settings.cache_dir / FILE).exists():
            return []
        place = place_of(self._backend, self._settings)
        with Records(self._settings.cache_dir) as records:
            return [r for r in records.all() if Place(r.machine, r.threads, r.library) == place]


def _strict(value: Any) -> Any:
    """JSON values whose infinities are text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _strict(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
