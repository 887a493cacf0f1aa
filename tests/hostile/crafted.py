"""Programs that a hostile hand has changed, in artifacts whose digests are made right again. Machine code is left alone."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sparsec.run import artifact
from sparsec.run import manifest as manifests
from sparsec.run.affine import Affine
from sparsec.run.constants import Constants
from sparsec.run.program import GROUP_WIDTH, RECORD_WIDTH, Patch, Program

HOSTILE = [0, 1, -1, 2, 3, 64, 4096, 2**20, 2**30 - 1, 2**30, 2**31 - 1, -(2**31), 2**31, 2**40, 2**46, 2**62, 2**63 - 1, -(2**63)]
Draw = random.Random
Change = Callable[[Program, Draw], Program]


def near(value: int, draw: Draw) -> int:
    """Another number: a hostile one, or one that is nearly right."""
    ways = [value + 1, value - 1, 2 * value, value // 2, value + 16, value + 64, value - 64, -value, value * 1000, draw.choice(HOSTILE)]
    return max(-(2**63), min(2**63 - 1, draw.choice(ways)))


def units(program: Program, draw: Draw) -> Program:
    groups = program.groups.copy()
    g, column = draw.randrange(len(groups)), draw.choice([2, 2, 2, 3, 3, 0, 1, 4])
    groups[g, column] = near(int(groups[g, column]), draw)
    return replace(program, groups=groups)


def numbers(program: Program, draw: Draw) -> Program:
    """Scalars, sizes of strip buffers, kernel ids: fields of records that are no addresses."""
    records = program.records.copy()
    addresses = {r.field for r in program.relocations}
    used = [i for i in range(records.size) if i not in addresses and (records.flat[i] or i % RECORD_WIDTH < 24)]
    for i in draw.sample(used, draw.choice([1, 1, 1, 2])):
        records.flat[i] = near(int(records.flat[i]), draw)
    return replace(program, records=records)


def dropped(program: Program, draw: Draw) -> Program:
    """Without a relocation the pointer is a number of the hand's choice."""
    kept, records = list(program.relocations), program.records.copy()
    for _ in range(draw.choice([1, 1, 2, len(kept)])):
        gone = kept.pop(draw.randrange(len(kept))) if kept else program.relocations[0]
        records.flat[gone.field] = draw.choice([0, 8, 4096, 0x400000, 2**47, -8])
    return replace(program, records=records, relocations=tuple(kept))


def redirected(program: Program, draw: Draw) -> Program:
    """Another segment, port or offset: weights that are written, inputs that overlap, ends of the arena."""
    found = list(program.relocations)
    for i in draw.sample(range(len(found)), min(len(found), draw.choice([1, 1, 2]))):
        r = found[i]
        sizes = {"arena": program.arena_bytes, "weights": program.weights.nbytes}
        port = draw.randrange(max(len(program.inputs), len(program.outputs))) if draw.random() < 0.5 else r.port
        segment = draw.choice([r.segment, r.segment, "arena", "weights", "input", "output"])
        size = sizes.get(segment, 256)
        offset = draw.choice([r.offset, 0, size, max(size - 4, 0), size // 2 // 4 * 4, draw.randrange(size + 1), near(r.offset, draw)])
        found[i] = dataclasses.replace(r, segment=segment, offset=offset, port=port)
    return replace(program, relocations=tuple(found))


def reordered(program: Program, draw: Draw) -> Program:
    """Relocations twice, in another order, or of fields that are none."""
    found = list(program.relocations)
    r = draw.choice(found)
    ways = [[*found, r], found[::-1], [dataclasses.replace(x, field=near(x.field, draw)) if x is r else x for x in found]]
    ways += [[dataclasses.replace(x, field=x.field + 1) if x is r else x for x in found]]
    return replace(program, relocations=tuple(draw.choice(ways)))


def ports(program: Program, draw: Draw) -> Program:
    """Tensors that are smaller or larger than what is written or read, or of other types."""
    side = draw.choice(["inputs", "outputs"])
    found = list(getattr(program, side))
    i = draw.randrange(len(found))
    shape = list(found[i].shape) or [1]
    axis = draw.randrange(len(shape))
    shape[axis] = near(shape[axis], draw)
    ways: list[dict[str, Any]] = [{"shape": tuple(shape)}] * 4
    ways += [
        {"dtype": draw.choice(["bool", "int32", "int64"])},
        {"limit": draw.choice([1, 5, 2**40, None])},
        {"follows": Affine(draw.choice([size.name for size in program.sizes] or ["tokens"]), draw.choice([-1, 1, 9]))},
    ]
    found[i] = replace(found[i], **draw.choice(ways))
    return replace(program, **{side: tuple(found)})


def memory(program: Program, draw: Draw) -> Program:
    ways: list[dict[str, Any]] = [{"arena_bytes": draw.choice([0, 4, program.arena_bytes // 2, max(program.arena_bytes - 64, 0), 2**45])}]
    weights = program.weights.blob()
    ways += [{"weights": Constants.of(weights[: draw.randrange(len(weights) + 1)])}, {"thread_slots": draw.choice([1, 2, 1000, 2**31 - 1])}]
    return replace(program, **draw.choice(ways))


def tables(program: Program, draw: Draw) -> Program:
    """Words of the weights: row pointers, columns and places among them."""
    weights = program.weights.blob().copy()
    words = weights[: len(weights) // 4 * 4].view(np.int32)
    small = np.flatnonzero((words >= 0) & (words < 1 << 16))
    for _ in range(draw.choice([1, 4, 64])):
        where = draw.choice(small) if len(small) and draw.random() < 0.8 else draw.randrange(len(words))
        words[where] = draw.choice([-1, 1 << 20, 2**31 - 1, -(2**31), 0x7FFF7FFF, int(words[where]) ^ 1, 65535])
    return replace(program, weights=Constants.of(weights))


def exchanged(program: Program, draw: Draw) -> Program:
    """Records or groups in other places, or groups that share records."""
    records, groups = program.records.copy(), program.groups.copy()
    i, j = draw.randrange(len(records)), draw.randrange(len(records))
    if draw.random() < 0.5:
        records[[i, j]] = records[[j, i]]
        return replace(program, records=records)
    g = draw.randrange(len(groups))
    groups[g, draw.randrange(2)] = draw.randrange(-1, len(records) + 2)
    return replace(program, groups=groups)


def patched(program: Program, draw: Draw) -> Program:
    """Entries that follow a run-time size: others, by another rule, or none."""
    if not program.sizes:
        return units(program, draw)
    patches = list(program.patches)
    action = draw.randrange(4)
    if action == 0 and patches:
        del patches[draw.randrange(len(patches))]
    elif action == 1 and patches:
        i = draw.randrange(len(patches))
        name, follows = draw.choice(["index", "plus", "over", "scale"]), patches[i].follows
        if name == "index":
            patches[i] = replace(patches[i], index=near(patches[i].index, draw))
        else:
            patches[i] = replace(patches[i], follows=replace(follows, **{name: near(getattr(follows, name), draw)}))
    elif action == 2:
        table = draw.choice(["records", "groups"])
        cells = program.records if table == "records" else program.groups
        index = draw.randrange(cells.size) if table == "records" else GROUP_WIDTH * draw.randrange(len(cells)) + 2
        size = draw.choice(program.sizes)
        flat = int(cells.flat[index])
        patches.append(Patch(table, index, Affine(size.name, flat - size.most)))  # type: ignore[arg-type]
    else:
        size = draw.choice(program.sizes)
        wider = replace(size, **{draw.choice(["least", "most"]): near(size.most, draw)})
        return replace(program, sizes=tuple(wider if each is size else each for each in program.sizes))
    return replace(program, patches=tuple(patches))


CHANGES: tuple[Change, ...] = (units, numbers, numbers, dropped, redirected, reordered, ports, memory, tables, exchanged, patched)


def crafted(program: Program, number: int) -> tuple[str, Program]:
    """The changed program of that number, and what was done."""
    draw = random.Random(number)
    change = CHANGES[number % len(CHANGES)]
    return change.__name__, change(program, draw)


def read(folder: Path) -> tuple[dict[str, Any], Program]:
    """The manifest and the program of an artifact."""
    manifest = json.loads((folder / manifests.MANIFEST).read_text())
    return manifest, Program.restored(manifest["program"], load_file(folder / artifact.WEIGHTS))


def forge(folder: Path, program: Program) -> None:
    """Put a program into an artifact, with all digests right. OverflowError, KeyError for what no file can hold."""
    manifest = json.loads((folder / manifests.MANIFEST).read_text())
    save_file(program.arrays(), folder / artifact.WEIGHTS)
    artifact.write_flat(folder, program, manifest["library"], manifest["machine"])
    manifest["program"] = program.described()
    sealed(folder, manifest)


def sealed(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the digests of the files as they are."""
    manifest.pop("digest", None)
    manifest["files"] = {name: manifests.digest((folder / name).read_bytes()) for name in manifest["files"]}
    manifests.write_manifest(folder, manifest)
