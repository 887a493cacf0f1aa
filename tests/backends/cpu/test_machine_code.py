"""Loops in the text of a kernel's machine code."""

from sparsec.backends.cpu.machine_code import Loop, Turn, around, busiest, instructions

#: A loop over tiles with a loop over rows, in which rows of no nonzeros go past the inner loop.
TEXT = """
\t.text
kernel:                                 // @kernel
.Lfunc_begin0:
\tmov\tw9, wzr
.LBB0_1:                                // tiles
\tadd\tw9, w9, #1
.Ltmp1:
\tb\t.LBB0_4
.LBB0_2:
\tmov\tv1.16b, v0.16b
.LBB0_3:
\tstr\tq1, [x1]
\tsubs\tw3, w3, #1
\tb.eq\t.LBB0_6
.LBB0_4:                                // rows
\tld1r\t{ v1.4s }, [x4]
\tcbz\tw5, .LBB0_2
.LBB0_5:
\tldp\tq2, q3, [x0]
\tfmla\tv1.4s, v2.4s, v3.s[0]
\tsubs\tw5, w5, #1
\tb.ne\t.LBB0_5
\tb\t.LBB0_3
.LBB0_6:
\tcmp\tw9, w8
\tb.ne\t.LBB0_1
\tret
"""


def names(lines: tuple[str, ...]) -> list[str]:
    return [line.split()[0] for line in lines if not line.endswith(":")]


def test_notes_and_labels_of_source_lines_are_left_out() -> None:
    lines = instructions(TEXT)
    assert lines[0] == "kernel:" and ".text" not in lines and ".Ltmp1:" not in lines
    assert "ld1r\t{ v1.4s }, [x4]" in lines


def test_turns_of_loops_go_through_the_one_inside_and_do_not_hold_it() -> None:
    lines = instructions(TEXT)
    inner = busiest(lines)
    assert isinstance(inner, Loop) and names(inner.lines) == ["ldp", "fmla", "subs", "b.ne"]
    rows, tiles = around(lines)
    assert names(rows.lines) == ["ld1r", "cbz", "b", "str", "subs", "b.eq"]
    assert names(tiles.lines) == ["add", "b", "cmp", "b.ne"]
    assert (rows.inner, tiles.inner) == (1, 1)


def test_loops_alike_in_one_turn_are_counted() -> None:
    """As where a compiler unrolled a loop over two panels."""
    inner = ["fmla v1.4s, v2.4s, v3.s[0]", "subs w5, w5, #1"]
    lines = [
        "kernel:",
        "A:",
        "ld1r {v1.4s}, [x4]",
        "B:",
        *inner,
        "b.ne B",
        "str q1, [x1]",
        "C:",
        *inner,
        "b.ne C",
        "str q1, [x2]",
        "b.ne A",
        "ret",
    ]
    assert around(lines) == [Turn(("A:", "ld1r {v1.4s}, [x4]", "str q1, [x1]", "str q1, [x2]", "b.ne A"), 2)]
