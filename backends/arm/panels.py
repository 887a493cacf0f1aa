"""Panels for NEON: 32 registers of 4 numbers.

A sparse row of 64 pixels has 16 accumulators and 16 loads of the input at a time of which one or two are live; blocks have 16 to 24
accumulators, the inputs of one column and one register of weights. Narrow registers leave a choice of tiles, and the maps of image networks
fill some better than others: 14 rows of 15 pixels are six tiles of 36 (seven of 32 are 14 pixels more), 7 rows of 8 are one of 56.

Costs are in vectors of 64 bytes as everywhere, which are four registers here: a core with two multiply-adds of a register per cycle takes
two cycles where the table of x86 has one. Those of values, offsets and rows are what LLVM's analyser predicts (the mean of its models of
cortex-a76 and neoverse-n1, ``benchmarks/arm.py``). A line from the second cache takes two cycles more (256 bits a cycle); what else caches
cost is a guess: nothing is fitted to a measurement.
"""

from dataclasses import replace

from sparsec.backends.panels import Panels

NEON = Panels(
    tiles=(72, 64, 56, 36, 32),
    sparse=((72, 4), (72, 2), (64, 4), (64, 2), (56, 4), (56, 2), (36, 4), (36, 2), (32, 4), (32, 2), (16, 4)),
    block=((4, 24, False), (4, 16, False), (6, 16, False), (8, 8, False), (4, 8, False), (4, 12, False)),
    attention=((6, 4, 1.0), (4, 4, 1.1)),
    unrolled=3,
    broadcast=((1, 1.0), (2, 0.45), (4, 0.25)),
    visit=7.0,
    miss=1.0,
    crowding=2.0,
    resident=0.8,
    store=2.7,
    partial=3.0,
    block_row=0.0,
    weights=0.06,
    block_store=5.0,
)
#: One multiply-add of a register per cycle, nothing hidden. LLVM unrolls inner loops for such cores: panels leave registers for that.
IN_ORDER = replace(
    NEON,
    block=((4, 16, False), (8, 8, False), (4, 8, False), (4, 12, False)),
    unrolled=1,
    broadcast=((1, 2.0), (2, 1.4), (4, 1.2)),
    visit=14.0,
    miss=4.0,
)
