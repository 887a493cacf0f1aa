"""The manifest of an artifact: what its folder holds, with a digest of each file and of itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsec.errors import ArtifactError
from sparsec.run.files import contents

FORMAT = 6
MANIFEST = "manifest.json"
AGAIN = "Save the model again, or copy the artifact again from where it was whole."


def digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()


def own_digest(manifest: Mapping[str, Any]) -> str:
    """Of a manifest without its entry "digest", in any order and spacing."""
    return digest(json.dumps(manifest, sort_keys=True).encode())


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Write it with its digest, which is returned."""
    own = own_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": own}, indent=1))
    return own


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of the artifact at ``path``, of this format and unaltered; ArtifactError otherwise."""
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError("There is no artifact here.", where=str(folder), why="No such directory.", hint="`sparsec compile` makes one.")
    try:
        manifest = json.loads(contents(folder / MANIFEST))
        form, own = manifest["format"], manifest.pop("digest", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError("The artifact has no readable manifest.", where=str(folder / MANIFEST), why=str(error), hint=AGAIN) from error
    if form != FORMAT:
        hint = "Use the version of sparsec that wrote it, or compile the model again."
        raise ArtifactError(f"The artifact has format {form!r}, this version reads {FORMAT}.", where=str(folder), hint=hint)
    if own != own_digest(manifest):
        raise ArtifactError("The manifest has been altered.", where=str(folder / MANIFEST), why="Its digest differs.", hint=AGAIN)
    return manifest


def verified(folder: Path, name: str, wanted: Any) -> bytes:
    """What is in a file of the artifact, links out of it not followed. ArtifactError where it is missing or has another digest."""
    file = folder / name
    if not inside(folder, name):
        raise ArtifactError("The artifact names a file outside its directory.", where=str(file), hint=AGAIN)
    try:
        content = contents(file)
    except (OSError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ArtifactError(f"A file of the artifact {what}.", where=str(file), why=str(error), hint=AGAIN) from error
    if digest(content) != wanted:
        raise ArtifactError("A file of the artifact is incomplete or altered.", where=str(file), why="Its digest differs.", hint=AGAIN)
    return content


def inside(folder: Path, name: str) -> bool:
    """Whether ``name`` can be that of an entry of the folder, and is no link out of it."""
    entry = folder / name
    try:
        linked = entry.is_symlink() and Path(os.path.realpath(entry)).parent != Path(os.path.realpath(folder))
    except (OSError, ValueError):
        return False
    return Path(name).name == name not in ("", "..") and not linked
