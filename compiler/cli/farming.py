"""The commands of a farm: TVM's tracker started, and what it knows shown."""

from __future__ import annotations

import signal
import sys
import time
from typing import Annotated, Any

import typer

from sparsec.cli.console import say, say_json, table_console
from sparsec.cli.options import JsonOption
from sparsec.tools.needs import COMPILER, require

_PORT = 9190

app = typer.Typer(help="Boards to tune on: start TVM's tracker, see who serves.", no_args_is_help=True)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for boards of a network that you trust.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65534)] = _PORT,
    key: Annotated[str | None, typer.Option(help="Make a board of this machine too, under this key.")] = None,
) -> None:
    """Start a tracker of TVM's, and serve until this is interrupted."""
    require((*COMPILER, "tornado"))
    from sparsec.autotune.serving import serving

    if not _is_loopback(host):
        say(
            f"Warning: whoever reaches {host}:{port}, or a board, can run any program on the boards. TVM's servers ask nobody who they are."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with serving(host, port, key) as processes:
        say(f"tracker at {host}:{port}" + (f", this machine serves {key!r}" if key else ""))
        say(f"On a board: python -m tvm.exec.rpc_server --tracker {_named(host)}:{port} --key KEY")
        say(f"Then here: sparsec tune MODEL --tracker {'127.0.0.1' if host == '0.0.0.0' else host}:{port} --key KEY")
        try:
            while all(process.poll() is None for process in processes):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
    say("A process of TVM's has ended.")
    raise typer.Exit(1)


@app.command()
def status(
    tracker: Annotated[str, typer.Option(metavar="HOST:PORT", help="The tracker to ask.")] = f"127.0.0.1:{_PORT}",
    json: JsonOption = False,
) -> None:
    """Show the boards of a tracker, and for each key how many are free and how many requests wait."""
    require((*COMPILER, "tornado"))
    from sparsec.autotune.tracker import Tracker

    summary = Tracker(tracker).summary()
    boards = sorted((entry["key"].partition(":")[2], ":".join(map(str, entry["addr"]))) for entry in summary["server_info"])
    keys = {
        key: {"boards": sum(name == key for name, _ in boards), "free": queue["free"], "waiting": queue["pending"]}
        for key, queue in sorted(summary["queue_info"].items())
    }
    if json:
        say_json(boards=[{"key": key, "address": address} for key, address in boards], keys=keys)
        return
    say(f"{tracker}: {len(boards)} boards")
    console = table_console()
    for table in (
        _table(("key", "board"), boards),
        _table(("key", "boards", "free", "waiting"), [(k, *v.values()) for k, v in keys.items()]),
    ):
        if table.rows:
            console.print(table)


def _table(columns: tuple[str, ...], rows: list[Any]) -> Any:
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _named(host: str) -> str:
    import socket

    return socket.gethostname() if host == "0.0.0.0" else host
