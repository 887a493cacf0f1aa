"""GPUs as data, and how many blocks they hold at once."""

import pytest

from sparsec.backends.cuda.machine import GPUS, gpu
from sparsec.errors import InvalidInput


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks"),
    [
        (32, 0, 4, 16),  # 64 warps are there for 16 blocks of 4
        (128, 0, 8, 2),  # 4,096 registers a warp: 16 warps
        (255, 0, 8, 1),
        (168, 0, 4, 3),  # 5,376 a warp: 12 warps
        (32, 48 << 10, 4, 3),  # 164 KiB, of which each block takes 49
        (32, 164 << 10, 4, 0),  # more than a block may have
        (32, 0, 1, 32),  # as many blocks as there may be
    ],
)
def test_resident_blocks_of_an_a100(registers: int, shared: int, warps: int, blocks: int) -> None:
    """As NVIDIA's occupancy calculator says."""
    assert gpu("a100").resident(registers, shared, warps) == blocks


def test_an_unknown_gpu_names_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="a100") as raised:
        gpu("v100")
    assert all(name in str(raised.value) for name in GPUS)
