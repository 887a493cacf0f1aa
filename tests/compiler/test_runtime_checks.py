"""What a runner refuses: tables that point outside, kernels that would leave their memory, sizes that fit nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from sparsec.errors import ArtifactError, MachineError
from sparsec.run.affine import Affine
from sparsec.run.constants import Constants
from sparsec.run.program import RECORD_WIDTH, Patch, Port, Program, Relocation, Size, check_tables
from sparsec.run.runtime import Runner
from tests.compiler.tiny_program import FEATURES, SIZE, TOKENS, chain, drawn, expected, library, sized

GROUP, RECORD = "groups", "records"


def altered(program: Program, **changes: object) -> Program:
    """A program with one table cell or field changed: ``records=(row, column, value)``."""
    made = dict(changes)
    for name in ("records", "groups"):
        if name in made:
            row, column, value = made[name]  # type: ignore[misc]
            made[name] = getattr(program, name).copy()
            made[name][row, column] = value  # type: ignore[index]
    return dataclasses.replace(program, **made)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"records": (0, 0, 1)},
        {"records": (1, 0, -1)},
        {"groups": (0, 1, 3)},
        {"groups": (0, 0, -1)},
        {"groups": (0, 0, 2)},
        {"groups": (1, 2, 2**40)},
        {"groups": (1, 3, -5)},
        {"groups": (1, 0, 0)},
        {"groups": (1, 1, 1)},
        {"relocations": chain().relocations[::-1]},
        {"relocations": (*chain().relocations[:1], *chain().relocations)},
        {"relocations": (Relocation(96, "arena", 0),)},
        {"relocations": (Relocation(48, "arena", 0),)},
        {"relocations": (Relocation(-47, "arena", 0),)},
        {"relocations": (Relocation(1, "arena", 4 * SIZE + 1),)},
        {"relocations": (Relocation(1, "weights", 1 << 30),)},
        {"relocations": (Relocation(1, "input", 0, 1),)},
        {"relocations": (Relocation(1, "output", -4, 0),)},
        {"relocations": (Relocation(1, "heap", 0, 0),)},  # type: ignore[arg-type]
        {"arena_bytes": -1},
        {"thread_slots": 0},
        {"records": (0, 5, 4 * SIZE + 4)},
        {"records": (0, 5, 4 * SIZE), "thread_slots": 2},
        {"records": (0, 5, -4)},
        {"steps": ()},
    ],
)
def test_tables_that_point_outside_are_refused(changes: dict) -> None:
    check_tables(chain())
    with pytest.raises(ArtifactError, match="tables do not fit"):
        check_tables(altered(chain(), **changes))


def moved(number: int, **changes: Any) -> dict[str, Any]:
    """One relocation of ``chain()`` changed; None leaves it out."""
    found = list(chain().relocations)
    found[number : number + 1] = [dataclasses.replace(found[number], **changes)] if changes else []
    return {"relocations": tuple(found)}


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": (0, 2, 2**20)},
        {"groups": (1, 2, 2**31 - 1)},
        {"groups": (0, 2, SIZE + 1)},
        {"arena_bytes": 4 * SIZE - 4},
        {"arena_bytes": 0},
        {"outputs": (Port("y", (SIZE - 1,)),)},
        {"inputs": (Port("x", (4, 23)),)},
        {"inputs": (Port("x", (4, 24), "bool"),)},
        {"weights": Constants.of(np.zeros(8 * SIZE - 300, np.uint8))},
        moved(0),
        moved(4),
        moved(5),
        moved(0, segment="output", offset=4),
        moved(1, segment="weights"),
        moved(1, segment="input"),
        moved(1, offset=4),
        moved(4, offset=2),
        {"records": (0, 5, 2)},
        {"records": (0, 6, 2)},
        {"records": (1, 2, 2**40)},
        {"records": (1, 8, 2**40)},
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_that_would_leave_their_memory_do_not_run(changes: dict[str, Any], threads: int) -> None:
    with pytest.raises(ArtifactError):
        Runner(altered(chain(), **changes), library(), threads)


def test_what_is_read_beyond_the_arena_and_the_weights_is_theirs() -> None:
    """The first constant of a program may be followed by less than a vector: ``TAIL`` bytes are there."""
    weights = chain().weights.blob()
    program = dataclasses.replace(chain(), weights=Constants.of(weights[: len(weights) - 256]))
    y = Runner(program, library())(drawn(1, 4, 24))[0]
    assert y.shape == (1, 4, 24)


@pytest.mark.parametrize("size", [1, 5, TOKENS])
def test_a_size_at_which_kernels_would_leave_their_memory_does_not_run(size: int) -> None:
    """Of the largest size all is well; units that do not follow the size are too many for others."""
    runner, x = Runner(dataclasses.replace(sized(), patches=()), library()), drawn(1, size, FEATURES)
    if size == TOKENS:
        np.testing.assert_allclose(runner(x)[0], expected(x), rtol=1e-6, atol=1e-6)
        return
    with pytest.raises(ArtifactError, match="would leave its memory"):
        runner(x)


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": ()},
        {"sizes": (Size("tokens", 0, TOKENS),)},
        {"sizes": (Size("tokens", 5, 4),)},
        {"sizes": (Size("tokens", 1, TOKENS + 1),)},
        {"sizes": (Size("other", 1, TOKENS),)},
        {"patches": (Patch("weights", 2, Affine("tokens", 0, 1, 1, 8)),)},  # type: ignore[arg-type]
        {"patches": (Patch(GROUP, 2, Affine("other", 0, 1, 1, 8)),)},
        {"patches": (Patch(GROUP, 1, Affine("tokens", 0, 1, 1, 8)),)},
        {"patches": (Patch(GROUP, 0, Affine("tokens", 0, 1, 1, 8)),)},
        {"patches": (Patch(GROUP, 3, Affine("tokens", 0, 1, 1, 8)),)},
        {"patches": (Patch(GROUP, -3, Affine("tokens", 0, 1, 1, 8)),)},
        {"patches": (Patch(GROUP, 12, Affine("tokens", 0, 1, 1, 8)),)},
        {"patches": (Patch(GROUP, 2, Affine("tokens", 0, 1, 1, 9)),)},
        {"patches": (Patch(GROUP, 2, Affine("tokens", 0, 2, 1, 4)),)},
        {"patches": (Patch(GROUP, 2, Affine("tokens", 1, 1, 1, 8)),)},
        {"patches": (Patch(GROUP, 2, Affine("tokens", 0, 1, 0, 8)),)},
        {"patches": (Patch(GROUP, 2, Affine("tokens", 0, 1, -1, -8)),)},
        {"patches": (Patch(RECORD, 0, Affine("tokens", 0, 1, 1, 0)),)},
        {"patches": (Patch(RECORD, 1, Affine("tokens", 0, 1, 1, 0)),)},
        {"patches": (Patch(RECORD, 7, Affine("tokens", 0, 1, 1, 0)),)},
        {"patches": (Patch(RECORD, 2 * RECORD_WIDTH + 9, Affine("tokens", 0, 1, 1, 0)),)},
        {"inputs": (Port("x", (TOKENS, FEATURES), follows=Affine("other")),)},
        {"inputs": (Port("x", (TOKENS, FEATURES), follows=Affine("tokens", 1)),)},
        {"inputs": (Port("x", (), follows=Affine("tokens")),)},
        {"inputs": (Port("x", (TOKENS, FEATURES), "float64", Affine("tokens")),)},
        {"inputs": (Port("x", (TOKENS, FEATURES), follows=Affine("tokens"), limit=0),)},
        {"outputs": (Port("y", (TOKENS - 1, FEATURES), follows=Affine("tokens")),)},
        {"patches": (Patch(GROUP, 2, Affine("tokens", -11, 1, 1, TOKENS * FEATURES)),)},
        {"inputs": (Port("x", (TOKENS - 2, FEATURES), follows=Affine("tokens", -2)),)},
        {"padding": 1},
        {"padding": -1},
    ],
)
def test_sizes_and_patches_that_fit_no_table_are_refused(changes: dict) -> None:
    check_tables(sized())
    with pytest.raises(ArtifactError, match="tables do not fit"):
        check_tables(dataclasses.replace(sized(), **changes))
    described = dataclasses.replace(sized(), **changes)
    with pytest.raises(ArtifactError):
        Program.restored(described.described(), described.arrays())


def test_a_mask_of_fixed_length_removes_no_padding() -> None:
    fixed = dataclasses.replace(sized(masked=True), inputs=(sized().inputs[0], Port("mask", (TOKENS,), "bool")))
    with pytest.raises(ArtifactError, match="no padding mask"):
        check_tables(fixed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sizes", None),
        ("sizes", [{"name": "tokens", "least": 1}]),
        ("sizes", [{"name": "tokens", "least": 1, "most": 12.5}]),
        ("patches", [["groups", 2, "tokens", 0, 1]]),
        ("patches", [["groups", "2", "tokens", 0, 1, 8]]),
        ("patches", [["groups", 2, "tokens", 0, 1, 8.0]]),
        ("padding", "mask"),
        ("inputs", [{"name": "x", "shape": [12, 8]}]),
    ],
)
def test_malformed_sizes_in_a_description_are_refused(name: str, value: object) -> None:
    program = sized()
    with pytest.raises(ArtifactError):
        Program.restored(program.described() | {name: value}, program.arrays())


def test_a_file_that_is_no_library_is_refused(tmp_path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"not an object file")
    with pytest.raises(ArtifactError, match="kernel library"):
        Runner(chain(), path)


def test_a_program_for_another_executor_is_refused_with_what_to_do() -> None:
    program = dataclasses.replace(chain(), executor="wheels")
    with pytest.raises(MachineError, match=r"needs the executor 'wheels', this one is 'cpu'\.\n.*\n.*--target native"):
        Runner(program, library())
