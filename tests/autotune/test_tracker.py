"""Whatever listens at a tracker's address, and whatever it knows, the answer is a board or a clear error, soon."""

import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest
from tvm.rpc import base

from sparsec.autotune import tracker as module
from sparsec.autotune.tracker import Tracker
from sparsec.errors import InvalidInput, MachineError
from tests.autotune.boards import free_ports

SUMMARY = {
    "server_info": [{"key": "server:pi", "addr": ["10.0.0.2", 9090]}, {"key": "server:pi", "addr": ["10.0.0.3", 9090]}],
    "queue_info": {"pi": {"free": 1, "pending": 0}},
}


@contextmanager
def listening(serve):
    """The address of a server that answers one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            connection, _ = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield Tracker(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)


def answering(code, reply):
    def serve(connection):
        connection.sendall(base.recvall(connection, 4))
        asked = base.recvjson(connection)
        assert asked[0] == code
        if reply is None:
            connection.recv(1)
        else:
            base.sendjson(connection, [base.TrackerCode.SUCCESS, reply])

    return listening(serve)


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", "localhost:http", ":9190", "localhost:0", "localhost:65536"])
def test_an_address_that_is_none(text):
    with pytest.raises(InvalidInput, match=r"A tracker is HOST:PORT, got .*\n.*--tracker"):
        Tracker(text)


def test_nobody_listens():
    (port,) = free_ports(1)
    begin = time.monotonic()
    with pytest.raises(MachineError, match=rf"No tracker answers at 127.0.0.1:{port}\.\n.*refused\n.*sparsec farm serve"):
        Tracker(f"127.0.0.1:{port}").summary()
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "serve", [lambda c: c.sendall(b"HTTP/1.1 400"), lambda c: c.close(), lambda c: c.recv(5)], ids=["other", "closed", "silent"]
)
def test_something_else_listens(serve, monkeypatch):
    monkeypatch.setattr(module, "_REPLY_S", 0.5)
    with listening(serve) as tracker, pytest.raises(MachineError, match="No tracker answers at"):
        tracker.summary()


def test_boards_of_a_key():
    with answering(base.TrackerCode.SUMMARY, SUMMARY) as tracker:
        assert tracker.boards("pi") == 2


def test_an_unknown_key():
    with answering(base.TrackerCode.SUMMARY, SUMMARY) as tracker, pytest.raises(MachineError) as failed:
        tracker.boards("phone")
    assert failed.value.what == "No board has the key 'phone'." and failed.value.why == "Keys of its boards: pi."
    assert failed.value.hint == f"On the board: python -m tvm.exec.rpc_server --tracker {tracker.address} --key phone"


def test_a_board():
    with answering(base.TrackerCode.REQUEST, ["10.0.0.2", 9090, "pi:0.5"]) as tracker:
        assert tracker.request("pi", 5) == ("10.0.0.2", 9090, "pi:0.5")


def test_no_board_is_free():
    with (
        answering(base.TrackerCode.REQUEST, None) as tracker,
        pytest.raises(MachineError, match=r"'pi' is free\.\n.*\n.*busy for 0.3 s"),
    ):
        tracker.request("pi", 0.3)


def test_the_magic_number_is_checked():
    def serve(connection):
        connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC + 1))

    with listening(serve) as tracker, pytest.raises(MachineError, match="no tracker of TVM's"):
        tracker.summary()
