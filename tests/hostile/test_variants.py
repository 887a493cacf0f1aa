"""Artifacts for several processors that a hostile hand has changed, through Python and C: refused, or right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest

from sparsec.run.artifact import save_variants
from sparsec.run.manifest import MANIFEST, write_manifest
from tests.compiler.tiny_program import ANY_MACHINE, LARGER, chain, variant
from tests.hostile.changed import changed_file, changed_manifest, changed_words
from tests.hostile.test_artifacts import NEEDS_C, Tried, harness  # noqa: F401

KINDS = ("file", "manifest", "words", "manifest inside", "words inside")


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Of the same program, so that there is one right answer, whichever is taken."""
    return save_variants(tmp_path / "several.sparsec", [variant(LARGER), variant(ANY_MACHINE)], {"output": "leaf"})


def change(folder: Path, kind: str, draw: Random) -> None:
    """One of ``KINDS``; inside a variant, the list is made right again in the manifest, and program.bin of the top is left as it is."""
    if kind == "file":
        changed_file(folder, draw)
        return
    where, inside = folder, kind.endswith(" inside")
    if inside:
        where = folder / draw.choice(["larger", "plain"])
    (changed_manifest if kind.startswith("manifest") else changed_words)(where, draw)
    if inside:
        top = json.loads((folder / MANIFEST).read_text())
        rows = [{**row, "digest": json.loads((folder / row["folder"] / MANIFEST).read_text())["digest"]} for row in top["variants"]]
        write_manifest(folder, {**top, "variants": rows})


def try_changes(several: Path, numbers: range, tried: Tried) -> None:
    assert tried.outcome("whole", tried.copy(several), chain())[0] == "ran"
    wanted = tried.results("python")
    tried.counts.clear()
    for number in numbers:
        kind, folder = KINDS[number % len(KINDS)], tried.copy(several)
        change(folder, kind, Random(number))
        name = f"list {number} ({kind})"
        python, c = tried.outcome(name, folder, chain())
        for side, which, blind in (("python", python, "words"), ("out", c, "manifest")):
            if which == "ran" and kind in ("file", "manifest", "words", f"{blind} inside") and tried.results(side) != wanted:
                tried.wrong.append(f"{name}: another answer from {side}")


def test_some_changed_lists(several: Path, tmp_path: Path) -> None:
    tried = Tried(tmp_path, None)
    try_changes(several, range(50), tried)
    tried.finish()
    assert tried.counts["refused"] > 20


@NEEDS_C
@pytest.mark.slow
def test_changed_lists_are_refused_or_right(several: Path, harness: Path, tmp_path: Path) -> None:  # noqa: F811
    tried = Tried(tmp_path, harness)
    try_changes(several, range(2000 if os.environ.get("SPARSEC_SWEEP") else 200), tried)
    tried.finish()
    assert tried.counts["refused refused"] > 40
