"""Compiles kernels for a GPU: `python -m tests.backends.cuda.built GPU`. Prints, as JSON, what is known of the code of each."""

import json
import sys
from itertools import product

from sparsec.backends.cuda.block_sparse import ACTIVATIONS, Layer, Schedule, aligned_of, candidates, combine_kernel, product_kernel
from sparsec.backends.cuda.build import compiled
from sparsec.backends.cuda.launch import Kernel
from sparsec.backends.cuda.machine import Gpu, gpu

BLOCKS = ((32, 32), (64, 64), (128, 64))
#: Each dtype, with products of float32 numbers as they are and rounded.
NUMBERS = (("bfloat16", False), ("float16", False), ("float32", False), ("float32", True))


def drawn(it: Gpu) -> list[tuple[Schedule, Kernel]]:
    """Every schedule, with an epilogue of each kind in turn, with sizes that are multiples of 16 and others, whole and in parts."""
    found = []
    for number, (block, (dtype, rounded), size) in enumerate(product(BLOCKS, NUMBERS, (1280, 1283))):
        for turn, schedule in enumerate(candidates(Layer(size, size, dtype), block, it, rounded)):
            layer = Layer(size, size, dtype, turn % 3 > 0, (number + turn) % 2 == 0, ACTIVATIONS[(number + turn) % len(ACTIVATIONS)])
            numbers = dict.fromkeys(("m", "n", "k", "x_row", "y_row", "r_row"), size)
            found.append((schedule, product_kernel(layer, schedule, aligned_of(numbers), turn % 2 == 1)))
            if turn == 0:
                found.append((schedule, combine_kernel(layer, schedule, aligned_of({**numbers, "k": 1}))))
    return found


def main() -> None:
    """Print what was asked for."""
    it, told = gpu(sys.argv[1]), []
    for schedule, kernel in drawn(it):
        code = compiled(kernel, it.capability)
        loads = [name for name in code.operations if name.startswith("LDGSTS") and "128" in name]
        told.append(
            {
                "symbol": kernel.symbol,
                "product": kernel.function == "block_sparse",
                "aligned": bool(kernel.aligned),
                "tensor": not (dict(kernel.pointers)["y"] == "float32" and schedule.precision == "ieee"),
                "stack": code.stack,
                "spills": code.count("LDL") + code.count("STL"),
                "resident": it.resident(code.registers, code.shared, kernel.warps),
                "HMMA": code.count("HMMA"),
                "HGMMA": code.count("HGMMA"),
                "wide loads": sum(code.operations[name] for name in loads),
            }
        )
    print(json.dumps(told))


if __name__ == "__main__":
    main()
