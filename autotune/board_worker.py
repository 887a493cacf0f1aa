"""The child process that measures on a board: ``python -m sparsec.autotune.board_worker``. See ``worker`` for what it answers; first

    {"do": "connect", "tracker": "HOST:PORT", "key": ..., "patience": 60, "library": ...} -> {"board": "HOST:PORT", "files": [...]}

``files``: those of ``board_cpu.PLACES``, in hexadecimal digits.

A failure of the board answers {"failure": reason, "kind": "lost"}.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.autotune.worker import Worker
from sparsec.tools.json_lines import serve

if TYPE_CHECKING:
    from sparsec.autotune.board import Board
    from sparsec.autotune.candidate import Bench
    from sparsec.autotune.job import Job


class BoardWorker(Worker):
    """Holds the session with one board."""

    _board: Board

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        if request["do"] != "connect":
            return super().answer(request)
        try:
            return self._connect(**{name: value for name, value in request.items() if name != "do"})
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> dict[str, Any]:
        from sparsec.autotune.board import Gone

        return {"failure": str(error), "kind": "lost"} if isinstance(error, Gone) else super()._failure(error)

    def _connect(self, tracker: str, key: str, patience: float, library: str) -> dict[str, Any]:
        from sparsec.autotune.board import Board
        from sparsec.autotune.board_cpu import PLACES
        from sparsec.autotune.tracker import Tracker

        address = Tracker(tracker).request(key, patience)
        self._board = board = Board(address, Path(library))
        return {
            "board": f"{address.host}:{address.port}",
            "files": [board.file(f"/proc/{name}").hex() for name in PLACES],
        }

    def _made(self, job: Job) -> Bench:
        from sparsec.autotune.board_bench import BoardBench

        return BoardBench(job, self._board)


if __name__ == "__main__":
    serve(BoardWorker().answer)
