"""What an artifact holds and which machine it is for, read without loading it: on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparsec.errors import ArtifactError
from sparsec.run.manifest import MANIFEST, read_manifest
from sparsec.run.program import Port, Size
from sparsec.run.variants import VARIANTS, in_words, not_here, variants_of


@dataclass(frozen=True)
class Inspection:
    """``not_here``: why this machine cannot run it, empty if it can. ``files``: bytes by name. ``threads``: the most of a call, if stated.

    ``batches``: the least and the largest served, None where any is. ``variants``: those of an artifact for several processors, the best
    first; ``variant``: the name of the one that is described, empty where there is one only.
    """

    format: int
    sparsec: str
    variant: str
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
    variants: tuple[Inspection, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        nested = {name: [each.plain() for each in getattr(self, name)] for name in ("inputs", "outputs", "variants")}
        return asdict(self) | nested


def inspect(path: Path | str) -> Inspection:
    """What the artifact at ``path`` says of itself. ArtifactError where it is missing, malformed or of another format.

    One for several processors is the variant that this machine takes, the first where it takes none, with the files of all.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    found = [_of_one(place, of_one, place.name if place != folder else "") for place, of_one in variants_of(folder, manifest)]
    if VARIANTS not in manifest:
        return found[0]
    taken = next((each for each in found if not each.not_here), found[0])
    files = {f"{each.variant}/{name}": size for each in found for name, size in each.files.items()}
    return replace(
        taken,
        not_here=taken.not_here and in_words({each.variant: each.not_here for each in found}),
        files=_files(folder, manifest) | files,
        variants=tuple(found),
    )


def _of_one(folder: Path, manifest: Mapping[str, Any], variant: str) -> Inspection:
    try:
        machine, program = manifest["machine"], manifest["program"]
        least, most = program["batches"]
        return Inspection(
            format=int(manifest["format"]),
            sparsec=str(manifest["sparsec"]),
            variant=variant,
            arch=str(machine["arch"]),
            cpu=str(machine.get("cpu", "")),
            features=tuple(map(str, machine["features"])),
            not_here=not_here(folder, manifest),
            inputs=tuple(map(Port.restored, program["inputs"])),
            outputs=tuple(map(Port.restored, program["outputs"])),
            sizes=tuple(map(Size.restored, program["sizes"])),
            batches=(int(least), None if most is None else int(most)),
            threads=None if program["thread_slots"] is None else int(program["thread_slots"]),
            kernels=tuple(map(str, program["kernels"])),
            arena_bytes=int(program["arena_bytes"]),
            files=_files(folder, manifest),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError("The artifact is malformed.", where=str(folder), why=f"{type(error).__name__}: {error}") from error


def _files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    try:
        return {name: (folder / name).stat().st_size for name in (MANIFEST, *map(str, manifest["files"]))}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            "The artifact's list of files is incomplete.", where=str(folder), why=f"{type(error).__name__}: {error}"
        ) from error
    except OSError as error:
        raise ArtifactError("A file of the artifact is missing.", where=str(folder), why=str(error)) from error
