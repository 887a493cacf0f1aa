"""Panels for NEON: 32 registers of 4 numbers.

A sparse row of 64 pixels has 16 accumulators and 16 loads of the input at a time of which one or two are live; blocks have 16 to 24
accumulators, the inputs of one column and one register of weights. Costs are in vectors of 64 bytes as everywhere, which are four registers
here: a core with two multiply-adds of a register per cycle takes two cycles where the table of x86 has one. They are guesses from these
counts and are fitted to no measurement.
"""

from dataclasses import replace

from sparsec.backends.panels import Panels

NEON = Panels(
    sparse=((64, 2), (32, 4), (32, 2), (16, 4)),
    block=((4, 16, False), (6, 16, False), (8, 8, False)),
    attention=((6, 4, 1.0), (4, 4, 1.1)),
    unrolled=2,
    broadcast=((1, 1.0), (2, 0.8), (4, 0.7)),
    visit=9.0,
    miss=2.0,
    crowding=2.0,
    resident=0.8,
    store=2.4,
    partial=3.0,
    block_row=4.0,
    block_store=1.0,
)
#: One multiply-add of a register per cycle, nothing hidden: longer rows of fewer accumulators pay for loops.
IN_ORDER = replace(NEON, broadcast=((1, 2.0), (2, 1.4), (4, 1.2)), visit=14.0, miss=4.0)
