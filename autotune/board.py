"""A session with a board, over a server of TVM's: its files, its memory, and the kernels that it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.autotune.tracker import Address
from sparsec.autotune.worker import first_line

#: The most of a file that is read.
_FILE_BYTES = 1 << 18
_NAME_BYTES = 4096
#: Seconds after which a call of a kernel ends the session on the board itself.
_CALL_S = 30
#: Seconds after which a session ends on the board, whoever has forgotten it.
_SESSION_S = 24 * 3600


class Gone(Exception):
    """The board does not do what it is asked to, whatever the candidate; the text says why."""


class Board:
    """A connection to a server. ``library``: ``board.c``, compiled for the board. Gone from every method where the board fails."""

    def __init__(self, address: Address, library: Path) -> None:
        from tvm import rpc

        self._session = _asked(rpc.connect, *address, session_timeout=_SESSION_S)
        self._device = self._session.cpu()
        module = self._uploaded(library, self._session.load_module)
        self._session.remove(library.name)
        self._module = module
        self._functions = {name: _asked(module.get_function, f"sparsec_{name}") for name in ("address", "read", "load", "time")}

    def file(self, path: str) -> bytes:
        """The beginning of a file of the board; empty without such a file."""
        into = self.put(np.zeros(_FILE_BYTES, np.uint8))
        had = self._call("read", self.put(_text(path, len(path) + 1)), into)
        return self.get(into)[: max(had, 0)].tobytes()

    def put(self, array: np.ndarray) -> Any:
        """A copy of an array on the board, at a whole line."""
        from tvm import runtime

        return _asked(runtime.tensor, np.ascontiguousarray(array), self._device)

    def get(self, there: Any) -> np.ndarray:
        """A copy of the board's array here."""
        found: np.ndarray = _asked(there.numpy)
        return found

    def address(self, there: Any) -> int:
        """Where an array's elements are on the board."""
        return int(self._call("address", there))

    def kernels(self, library: Path) -> int:
        """The entry of a kernel library, which is uploaded, loaded and leaves no file."""
        name = self.put(_text(library.name, _NAME_BYTES))
        entry = int(self._uploaded(library, lambda _: self._call("load", name)))
        if not entry:
            raise Gone(f"it cannot load kernels: {self.get(name).tobytes().partition(bytes(1))[0].decode(errors='replace')}")
        return entry

    def time(self, entry: int, plan: Any, count: int) -> list[int]:
        """Nanoseconds of ``count`` runs of what a plan says (see ``board.c``), image after image."""
        samples = self.put(np.zeros(count, np.int64))
        self._call("time", entry, plan, samples, _CALL_S)
        return [int(sample) for sample in self.get(samples)]

    def _uploaded(self, library: Path, load: Callable[[str], Any]) -> Any:
        _asked(self._session.upload, str(library), library.name)
        return _asked(load, library.name)

    def _call(self, name: str, *arguments: Any) -> Any:
        return _asked(self._functions[name], *arguments)


def _asked(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return function(*arguments, **named)
    except Gone:
        raise
    except Exception as error:
        raise Gone(f"the session failed: {first_line(error)}") from error


def _text(text: str, room: int) -> np.ndarray:
    """Bytes of a text in ``room`` bytes, the last of them zero."""
    content: Sequence[int] = text.encode()
    found = np.zeros(room, np.uint8)
    found[: len(content)] = list(content)
    return found
