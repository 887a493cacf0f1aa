"""Artifacts that a hostile hand has changed file by file: with digests left as they were, or made right again for all but machine code."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.run import artifact
from sparsec.run import manifest as manifests
from tests.hostile.crafted import near, sealed

Draw = random.Random
_OTHER: list[Any] = [None, True, -1, 2**63, 10**30, 1e308, "", "x", "../x", "\0", [], {}, [[]], {"as": 1}, "x" * 100_000, "\ud83d"]


def changed_file(folder: Path, draw: Draw) -> None:
    """Bytes, kind or presence of one file."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    file = draw.choice(files)
    content, action = file.read_bytes(), draw.randrange(8)
    place = draw.randrange(len(content))
    file.unlink()
    if action == 0:
        file.write_bytes(content[:place])
    elif action < 3:
        flipped = bytearray(content)
        for _ in range(draw.choice([1, 1, 30])):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
    elif action == 3:
        file.write_bytes(draw.choice([each for each in files if each != file]).read_bytes())
    elif action == 4:
        file.symlink_to(draw.choice(["/dev/zero", "/etc/hostname", "nowhere", folder, file]))
    elif action == 5:
        file.write_bytes(content + draw.choice([b"\0", b"x" * 4096, content]))
    elif action == 6:
        draw.choice([lambda: os.mkfifo(file), lambda: file.mkdir(), lambda: None])()
    else:
        file.write_bytes(content)
        (folder / draw.choice(["more", "kernels-0.so", "manifest.json~"])).write_bytes(draw.randbytes(100))


def changed_manifest(folder: Path, draw: Draw) -> None:
    """Fields of the manifest, its digests made right again."""
    manifest = json.loads((folder / manifests.MANIFEST).read_text())
    for _ in range(draw.choice([1, 1, 2])):
        here: Any = manifest
        while True:
            key = draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
            if isinstance(here[key], dict | list) and here[key] and draw.random() < 0.85:
                here = here[key]
                continue
            action = draw.randrange(4)
            if action == 0:
                del here[key]
            elif action == 1 and isinstance(here[key], int) and not isinstance(here[key], bool):
                here[key] = near(here[key], draw)
            elif action == 2 and isinstance(here, dict):
                here[str(draw.choice(_OTHER))[:50]] = here[key]
            else:
                here[key] = draw.choice(_OTHER)
            break
        if not manifest:
            break
    manifest.pop("digest", None)
    try:
        sealed(folder, manifest)
    except (KeyError, TypeError, AttributeError, OSError, ValueError):
        manifests.write_manifest(folder, manifest)


def changed_words(folder: Path, draw: Draw) -> None:
    """Words of program.bin and of the weights' file, all digests made right again."""
    flat = np.frombuffer((folder / artifact.FLAT).read_bytes(), "<i8").copy()
    for _ in range(draw.choice([1, 1, 2, 8])):
        i = draw.randrange(7, len(flat))
        flat[i] = near(int(flat[i]), draw)
    content = flat.tobytes()
    digest = np.frombuffer(bytes.fromhex(manifests.digest(content[56:])), "<i8")
    flat[3:7] = digest
    (folder / artifact.FLAT).write_bytes(flat.tobytes())
    manifest = json.loads((folder / manifests.MANIFEST).read_text())
    sealed(folder, manifest)
