"""Panels for x86-64.

The costs of products are a least-squares fit over the 1x1 layers of MobileNetV1 at densities 0.05, 0.1 and 0.2 with six schedules each
(Zen 4, one core, AVX512): 11% typical error, and the predicted best schedules take 1% longer than the measured best ones. AVX2 does half
a vector per instruction and two instructions per cycle. Wide sparse tiles share the index work, narrow ones fit L1; block panels have 24
accumulators of 32 registers or 12 of 16 at most.
"""

from dataclasses import replace

from sparsec.backends.panels import Panels

AVX512 = Panels(
    sparse=((64, 2), (32, 4), (16, 4)),
    block=((4, 64, False), (8, 32, False), (6, 64, False), (8, 16, True)),
    attention=((8, 2, 1.0), (8, 1, 1.05)),
    broadcast=((1, 1.4), (2, 0.68), (4, 0.6)),
    visit=7.7,
    miss=1.0,
    crowding=2.8,
    resident=0.8,
    store=2.4,
    partial=2.5,
    block_row=6.0,
    block_store=0.4,
)
AVX2 = replace(AVX512, block=((6, 16, False), (4, 16, False)), attention=((6, 2, 1.0), (8, 1, 1.16)))
