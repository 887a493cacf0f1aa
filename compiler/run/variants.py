"""An artifact for several processors, and which of its variants one of them runs.

name.sparsec/
  manifest.json      format, version, names of the folders below, the best first, with the digests of their manifests, digests of the files
  program.bin        the names once more, for C (see ``sparsec.run.flat_program``)
  sparsec.[hc], *.h  load and run it from C
  x86-64-v4/         an artifact for one processor
  x86-64-v3/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsec.errors import ArtifactError, MachineError
from sparsec.run.manifest import AGAIN, inside, own_digest, read_manifest, verified
from sparsec.run.processor import lacking

VARIANTS = "variants"
#: As many as the C loader looks at.
MOST = 64


def variants_of(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The artifacts for one processor that an artifact consists of, the best first: their folders and manifests; itself, if it is for one.

    ArtifactError where one is missing, altered or not inside the folder.
    """
    if VARIANTS not in manifest:
        yield folder, dict(manifest)
        return
    try:
        listed = [(str(row["folder"]), row["digest"]) for row in manifest[VARIANTS]]
    except (KeyError, TypeError) as error:
        raise ArtifactError("The artifact's list of variants is malformed.", where=str(folder), why=repr(error), hint=AGAIN) from error
    if not 0 < len(listed) <= MOST:
        why = f"It names {len(listed)}, of 1 to {MOST}."
        raise ArtifactError("The artifact's list of variants is malformed.", where=str(folder), why=why, hint=AGAIN)
    for name, digest in listed:
        yield folder / name, _variant(folder, name, digest)


def _variant(folder: Path, name: str, digest: Any) -> dict[str, Any]:
    if not inside(folder, name):
        raise ArtifactError("The artifact names a variant outside its directory.", where=str(folder / name), hint=AGAIN)
    found = read_manifest(folder / name)
    if own_digest(found) != digest or VARIANTS in found:
        why = "Its manifest is another one than that which was saved with the artifact."
        raise ArtifactError("A variant of the artifact has been altered.", where=str(folder / name), why=why, hint=AGAIN)
    return found


def not_here(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Why this machine cannot run an artifact for one processor; empty if it can. ArtifactError where it does not say what it needs."""
    try:
        arch, features = str(manifest["machine"]["arch"]), [str(f) for f in manifest["machine"]["features"]]
    except (KeyError, TypeError) as error:
        raise ArtifactError("The artifact does not say which machine it needs.", where=str(folder), hint=AGAIN) from error
    return lacking(arch, features)


def variant_here(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the first variant that this machine can run, whatever is beside them verified.

    Raises:
        ArtifactError: missing, malformed or altered.
        MachineError: none is for a processor like this one; all are named with what lacks.
    """
    manifest, refused = read_manifest(folder), {}
    for place, found in variants_of(folder, manifest):
        if not (why := not_here(place, found)):
            if place != folder:
                _verify_files(folder, manifest)
            return place, found
        refused[place.name] = why
    hint = "Compile the model for this machine."
    raise MachineError("The artifact cannot run on this machine.", where=str(folder), why=in_words(refused), hint=hint)


def in_words(refused: Mapping[str, str]) -> str:
    """Why this machine can run none of several variants."""
    whys = list(refused.values())
    return whys[0] if len(set(whys)) == 1 else " ".join(f"{name}: {why}" for name, why in refused.items())


def _verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    try:
        files = {str(name): wanted for name, wanted in manifest["files"].items()}
    except (KeyError, AttributeError) as error:
        raise ArtifactError("The artifact's list of files is incomplete.", where=str(folder), hint=AGAIN) from error
    for name, wanted in files.items():
        verified(folder, name, wanted)


def best_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the first variant that this machine can run, or of the first one of all where it runs none. ArtifactError."""
    found = list(variants_of(folder, read_manifest(folder)))
    return next((each for each in found if not not_here(*each)), found[0])
