"""A tracker of TVM's: who serves which key, and a board for us. Every wait ends, which those of TVM's own client do not."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsec.errors import InvalidInput, MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPLY_S = 10.0


class Address(NamedTuple):
    """Where a server listens, and the word by which it knows whom the tracker sent."""

    host: str
    port: int
    matchkey: str


class Tracker:
    """The tracker at ``HOST:PORT``. InvalidInput where that is no such text; MachineError from every method where none answers there."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InvalidInput(f"A tracker is HOST:PORT, got {address!r}.", hint="Write it as --tracker 127.0.0.1:9190.")
        self.address, self._at = address, (host.strip("[]"), int(port))

    def summary(self) -> dict[str, Any]:
        """``server_info``: key and address of each board; ``queue_info``: by key, how many are free, and for how many others wait."""
        from tvm.rpc import base

        with self._connected(_REPLY_S) as connection:
            base.sendjson(connection, [base.TrackerCode.SUMMARY])
            found: dict[str, Any] = base.recvjson(connection)[1]
            return found

    def boards(self, key: str) -> int:
        """How many boards serve ``key``. MachineError if there are none."""
        served = [entry["key"].partition(":")[2] for entry in self.summary()["server_info"]]
        if key not in served:
            known = ", ".join(sorted(set(served))) or "none"
            hint = f"On the board: python -m tvm.exec.rpc_server --tracker {self.address} --key {key}"
            raise MachineError(f"No board has the key {key!r}.", where=self.address, why=f"Keys of its boards: {known}.", hint=hint)
        return served.count(key)

    def request(self, key: str, patience_s: float) -> Address:
        """A board of ``key`` for us alone. MachineError if none is free for ``patience_s``."""
        from tvm.rpc import base

        with self._connected(patience_s) as connection:
            base.sendjson(connection, [base.TrackerCode.REQUEST, key, "", 1])
            try:
                return Address(*base.recvjson(connection)[1])
            except TimeoutError:
                why, hint = f"All were busy for {patience_s:g} s.", "See `sparsec farm status`. Wait, or start more boards."
                raise MachineError(f"No board of key {key!r} is free.", where=self.address, why=why, hint=hint) from None

    @contextmanager
    def _connected(self, patience_s: float) -> Iterator[socket.socket]:
        from tvm.rpc import base

        try:
            with socket.create_connection(self._at, _REPLY_S) as connection:
                connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                if struct.unpack("<i", base.recvall(connection, 4))[0] != base.RPC_TRACKER_MAGIC:
                    raise OSError("What listens there is no tracker of TVM's.")
                connection.settimeout(patience_s)
                yield connection
        except (OSError, ValueError) as error:
            hint = "Start one with `sparsec farm serve`, and see that --tracker names it."
            raise MachineError(f"No tracker answers at {self.address}.", why=str(error), hint=hint) from error
