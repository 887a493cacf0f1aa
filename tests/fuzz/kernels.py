"""One kernel library for many cases: else compiling kernels takes most of the time of a search.

A kernel knows nothing of the network, and a program names it by its position in a list. So a child whose program needs only kernels of
the shared library assembles its program for that; another one compiles its own kernels and says which they are. Of these, with the scripts
that need them, the next shared library is made. It stays in the cache directory for later searches of the same sources.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.fuzz import prelude

#: Kernels outside the library that are worth another one.
FRESH = 24


class _Seen(BaseException):
    """A probe knows what it wanted to know."""


@dataclass
class Kernels:
    """The shared library's kernels in order, scripts that need one kernel or more that those before do not, and what a child met first."""

    file: Path
    library: list[Any] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    fresh: set[str] = field(default_factory=set)

    @classmethod
    def install(cls, folder: Path) -> Kernels:
        """Take the place of `driver._kernels`."""
        from sparsec import driver
        from sparsec.backends.cpu.library import _source_digest

        found = cls(folder / f"kernels-{_source_digest()[:16]}.pickle")
        found._read()
        driver._kernels = found.choose
        return found

    def _read(self) -> None:
        from sparsec.backends.base import Source

        if self.file.exists():
            scripts, made = pickle.loads(self.file.read_bytes())
            self.scripts = list(dict.fromkeys([*scripts, *self.scripts]))
            self.library = [Source(symbol, params, lambda: None) for symbol, params in made]
            self.known |= {symbol for symbol, _ in made}

    def choose(self, lowered: Any, _backend: Any) -> list[Any]:
        """The kernels to assemble a program for."""
        used = _used(lowered)
        if used.keys() <= {source.symbol for source in self.library}:
            return self.library
        self.fresh |= used.keys() - self.known
        return [used[symbol] for symbol in sorted(used)]

    def met(self, fresh: set[str], text: str) -> None:
        """What a child reports of a script; once there is enough for it another library is made."""
        if fresh - self.known:
            self.scripts.append(text)
            self.known |= fresh
        if len(self.known) - len(self.library) >= max(FRESH, len(self.library)):
            self._grow()

    def _grow(self) -> None:
        """In a child: TVM had better not run before a fork."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        process = get_context("fork").Process(target=_build, args=(self.scripts, self.file))
        process.start()
        process.join()
        self._read()


def _used(lowered: Any) -> dict[str, Any]:
    return {call.source.symbol: call.source for group in lowered.plan.groups for call in group.calls}


def _build(scripts: list[str], file: Path) -> None:
    from sparsec import driver
    from sparsec.backends.x86.backend import X86
    from sparsec.settings import Settings

    found: dict[str, Any] = {}

    def see(lowered: Any, _backend: Any) -> None:
        found.update(_used(lowered))
        raise _Seen

    for text in scripts:
        driver._kernels = see
        try:
            exec(compile(text, "script", "exec"), dict(vars(prelude)))
        except (Exception, _Seen):
            continue
    sources = [found[symbol] for symbol in sorted(found)]
    X86().build(sources, Settings().cache_dir)
    # Other processes of the search read and write it too.
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as written:
        written.write(pickle.dumps((scripts, [(source.symbol, source.params) for source in sources])))
    os.replace(written.name, file)
