"""Artifacts appear whole: they are written beside their place, and put there when all is done."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsec.errors import ArtifactError, unwritten
from sparsec.run.manifest import MANIFEST


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``target``; an artifact that is there is untouched if that fails.

    ArtifactError where the place is taken by something else or cannot be written.
    """
    _check_place(target)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        _swap(partial, target)
    except OSError as error:
        raise ArtifactError("The artifact cannot be written.", where=str(target), **unwritten(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_place(target: Path) -> None:
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ArtifactError("This place holds something that is not an artifact.", where=str(target), hint="Choose another name.")


def _swap(partial: Path, target: Path) -> None:
    """Put ``partial`` in the place of ``target``; a failure puts the old one back."""
    old = partial.with_name(f"{partial.name}.old")
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
