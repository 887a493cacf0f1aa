"""Drawn products through Triton's interpreter, which runs kernels on numpy: `python -m tests.backends.cuda.interpreted SEED COUNT`.

Prints, as JSON, of each: what was drawn, and the largest error as a share of the sum of magnitudes.
"""

import json
import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

from sparsec.backends.cuda import block_sparse, kernels
from sparsec.backends.cuda.block_sparse import ACTIVATIONS, Layer, Schedule
from sparsec.backends.cuda.launch import Launch

DTYPES = ("float32", "float16", "bfloat16")
#: Rounding of a result, and of a product of float32 numbers.
ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def mend() -> None:
    """What the interpreter gets wrong: numpy turns no array of one number into an int, as is asked for of a loop's bounds; products of
    bfloat16 are those of its bits.
    """
    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patching(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    interpreter._patch_lang_tensor = patching
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)


def run(found: list[Launch], tensors: dict[str, torch.Tensor]) -> None:
    """The launches in their order."""
    for launch in found:
        kernel = launch.kernel
        given = {name: tensors[name] for name, _ in kernel.pointers}
        getattr(kernels, kernel.function)[launch.grid](**given, **launch.numbers, **dict(kernel.constants))


def activated(value: torch.Tensor, name: str, lo: float, hi: float) -> torch.Tensor:
    """In float64."""
    match name:
        case "clamp":
            return value.clamp(lo, hi)
        case "gelu" | "gelu_tanh":
            return torch.nn.functional.gelu(value, approximate="tanh" if name == "gelu_tanh" else "none")
        case "silu":
            return torch.nn.functional.silu(value)
    return value


def drawn(random: np.random.Generator) -> tuple[dict[str, Any], float]:
    """A case and its error."""
    outputs, inputs = (int(random.choice([16, 32, 64])) for _ in range(2))
    n, k, m = int(random.integers(1, 200)), int(random.integers(1, 200)), int(random.choice([1, 7, 33, 128]))
    dtype = str(random.choice(DTYPES))
    density = float(random.choice([0.0, 0.2, 0.6, 1.0]))
    layer = Layer(n, k, dtype, bool(random.integers(2)), bool(random.integers(2)), str(random.choice(ACTIVATIONS)))
    schedule = Schedule(outputs, inputs, int(random.choice([16, 64])), 4, 3, "ieee", int(random.choice([0, 1, 2])))
    keep = np.repeat(np.repeat(random.random((-(-n // outputs), -(-k // inputs))) < density, outputs, 0)[:n], inputs, 1)[:, :k]
    kind = getattr(torch, dtype)
    weight = torch.from_numpy((random.standard_normal((n, k)) * keep).astype(np.float32)).to(kind)
    # Rows further apart than they are long; what lies between is no part of them.
    gap = int(random.integers(0, 3)) * 16
    x, y, residual = (torch.full((m, size + gap), float("nan"), dtype=kind) for size in (k, n, n))
    for tensor, size in ((x, k), (residual, n)):
        tensor[:, :size] = torch.from_numpy(random.standard_normal((m, size)).astype(np.float32)).to(kind)
    bias = torch.from_numpy(random.standard_normal(n).astype(np.float32))
    packed = block_sparse.pack(weight.float().numpy(), schedule)
    tensors = {"x": x, "y": y, "residual": residual, "bias": bias}
    tensors["partial"] = torch.full((block_sparse.slots(packed), m, outputs), float("nan"))
    tensors |= {name: torch.from_numpy(value) for name, value in packed.items()}
    tensors["weight"] = tensors["weight"].to(kind)
    bounds = (-0.5, float("inf"))
    run(block_sparse.launches(layer, schedule, packed, m, {"x": k + gap, "y": n + gap, "residual": n + gap}, bounds), tensors)
    assert y[:, n:].isnan().all(), "written beside the result"
    exact, size = x[:, :k].double() @ weight.double().T, x[:, :k].double().abs() @ weight.double().abs().T
    for there, added in ((layer.bias, bias.double()), (layer.residual, residual[:, :n].double())):
        exact, size = (exact + added, size + added.abs()) if there else (exact, size)
    error = (y[:, :n].double() - activated(exact, layer.activation, *bounds)).abs() / (1 + size)
    case = {"layer": str(layer), "schedule": str(schedule), "m": m, "density": density, "gap": gap, "split": len(packed["split"])}
    return case, float(error.max()) / ROUNDING[dtype]


def main() -> None:
    """Print what was asked for."""
    mend()
    seed, count = map(int, sys.argv[1:])
    print(json.dumps([drawn(np.random.default_rng([seed, number])) for number in range(count)]))


if __name__ == "__main__":
    main()
