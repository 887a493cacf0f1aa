"""What an artifact holds and which machine it is for, read without loading it: on any machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsec.errors import ArtifactError
from sparsec.run.artifact import MANIFEST, read_manifest
from sparsec.run.processor import lacking
from sparsec.run.program import Port, Size


@dataclass(frozen=True)
class Inspection:
    """``not_here``: why this machine cannot run it, empty if it can. ``files``: bytes by name. ``threads``: the most of a call, if stated.

    ``batches``: the least and the largest served, None where any is.
    """

    format: int
    sparsec: str
    arch: str
    cpu: str
    features: tuple[str, ...]
    not_here: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: tuple[Size, ...]
    batches: tuple[int, int | None]
    threads: int | None
    kernels: tuple[str, ...]
    arena_bytes: int
    files: dict[str, int]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"inputs": [p.plain() for p in self.inputs], "outputs": [p.plain() for p in self.outputs]}


def inspect(path: Path | str) -> Inspection:
    """What the artifact at ``path`` says of itself. ArtifactError where it is missing, malformed or of another format."""
    folder = Path(path)
    manifest = read_manifest(folder)
    try:
        machine, program = manifest["machine"], manifest["program"]
        features = tuple(map(str, machine["features"]))
        least, most = program["batches"]
        return Inspection(
            format=int(manifest["format"]),
            sparsec=str(manifest["sparsec"]),
            arch=str(machine["arch"]),
            cpu=str(machine.get("cpu", "")),
            features=features,
            not_here=lacking(str(machine["arch"]), features),
            inputs=tuple(map(Port.restored, program["inputs"])),
            outputs=tuple(map(Port.restored, program["outputs"])),
            sizes=tuple(map(Size.restored, program["sizes"])),
            batches=(int(least), None if most is None else int(most)),
            threads=None if program["thread_slots"] is None else int(program["thread_slots"]),
            kernels=tuple(map(str, program["kernels"])),
            arena_bytes=int(program["arena_bytes"]),
            files={name: (folder / name).stat().st_size for name in (MANIFEST, *map(str, manifest["files"]))},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError("The artifact is malformed.", where=str(folder), why=f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise ArtifactError("A file of the artifact is missing.", where=str(folder), why=str(error)) from error
