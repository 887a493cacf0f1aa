"""What LLVM makes of kernels for machines that need not be here: accumulators stay in registers, multiply-adds are fused and wide.

Only text is made. The inner loop of a product holds one register for each sum of its panel and takes none of them to the stack.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparsec.backends.arm.backend import Arm
from sparsec.backends.arm.machine import describe as describe_arm
from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu.backend import Cpu
from sparsec.backends.cpu.machine_code import Loop, assembly, busiest, inner_loops
from sparsec.backends.plan import Buffer, Task
from sparsec.backends.x86.backend import X86
from sparsec.backends.x86.machine import _AVX2, _AVX512, describe
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec
from tests.machines import lanes_of

AVX512 = describe(frozenset({*_AVX2, *_AVX512}), 1)
AVX2 = describe(frozenset(_AVX2), 1)
NEON = describe_arm("cortex-a76")
#: The letter of a whole register.
REGISTERS = {AVX512: "z", AVX2: "y"}
NAMES = {AVX512: "avx512", AVX2: "avx2", NEON: "neon"}
PLAIN = {"stride": (1, 1), "dilation": (1, 1)}


def task(op: str, shapes: Any, output: Any, layouts: tuple[str, str], weights: Any = (), tile: int = 64, **attributes: Any) -> Task:
    spec = KernelSpec(
        op, shapes, output, tuple(None if w is None else w.shape for w in weights), attributes=tuple(sorted(attributes.items()))
    )
    sources = tuple(Buffer(f"x{i}", storage(shape, layouts[0], tile)) for i, shape in enumerate(shapes))
    return Task(op, spec, sources, None, Buffer("y", storage(output, layouts[1], tile)), tuple(weights))


def storage(shape: tuple[int, ...], layout: str, tile: int) -> Storage:
    if len(shape) == 1:
        return Storage("single", shape[0])
    channels, *size = shape if len(shape) == 3 else (shape[1], 1, shape[0])
    return Storage(layout, channels, Geometry(*size, int(len(shape) == 3), tile))  # type: ignore[arg-type]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


MAP, TOKENS = (64, 14, 14), (50, 64)
TASKS: dict[str, Callable[[int], Task]] = {
    "product": lambda tile: task(
        "conv2d", (MAP,), MAP, ("tiled", "halo"), (drawn(64, 64, 1, 1), None), tile, **PLAIN, padding=(0, 0), groups=1
    ),
    "depthwise": lambda tile: task(
        "conv2d", (MAP,), MAP, ("halo", "halo"), (drawn(64, 1, 3, 3), None), tile, **PLAIN, padding=(1, 1), groups=64
    ),
    "vector": lambda tile: task("linear", ((256,),), (64,), ("single", "single"), (drawn(64, 256), None)),
    "attention": lambda tile: task("attention", (TOKENS,) * 3, TOKENS, ("tiled",) * 2, tile=tile, causal=False, heads=2, scale=0.2),
    "layer_norm": lambda tile: task("layer_norm", (TOKENS,), TOKENS, ("tiled",) * 2, (drawn(64), drawn(64)), tile, eps=1e-5),
}


def backend_of(machine: Machine) -> Cpu:
    return Arm(machine) if machine.arch == "aarch64" else X86(machine)


def kernels(name: str, machine: Machine, tile: int) -> list[tuple[Source, dict[str, Any]]]:
    """The kernels of all schedules of a task."""
    backend, made = backend_of(machine), TASKS[name](tile)
    return [(source, dict(s)) for s in backend.schedules(made) for source in backend.kernels(made, s)]


def sums(source: Source, schedule: dict[str, Any], machine: Machine) -> int:
    """How many registers a kernel sums up in: those of its panel, and of more chains where a panel has few (64 numbers, 8 registers)."""
    if schedule["kernel"] == "block":
        return int(schedule["rows"] * schedule["vectors"])
    chains = min(schedule["unroll"], max(1, min(64 // lanes_of(machine), 8) // schedule["vectors"]))
    return int(chains * schedule["vectors"])


def check(loop: Loop, machine: Machine) -> None:
    arm = machine.arch == "aarch64"
    assert loop.widths == {"v" if arm else REGISTERS[machine]}, loop.multiplies
    assert not loop.spills
    wanted = "fmla" if arm else "vfmadd231ps"
    assert any(line.startswith(wanted) for line in loop.multiplies)


@pytest.mark.parametrize("tile", [64, 32])
@pytest.mark.parametrize("machine", [AVX512, AVX2, NEON], ids=NAMES.get)
def test_panels_of_products_stay_in_registers(machine: Machine, tile: int) -> None:
    found = kernels("product", machine, tile)
    assert {schedule["kernel"] for _, schedule in found} == {"block", "spmm"}
    for source, schedule in found:
        loop = busiest(assembly(source, machine))
        assert len(loop.accumulators) == sums(source, schedule, machine), source.symbol
        check(loop, machine)


@pytest.mark.parametrize("machine", [AVX512, AVX2, NEON], ids=NAMES.get)
def test_rows_of_a_product_with_a_vector_stay_in_registers(machine: Machine) -> None:
    made = TASKS["vector"](0)
    (source,) = backend_of(machine).kernels(made, (("kernel", "gemv_blocks"),))
    loop = busiest(assembly(source, machine))
    assert len(loop.accumulators) == 4
    check(loop, machine)


# AVX2 has 16 registers, which nine weights, sums and limits do not fit in: they are read from the stack again.
@pytest.mark.parametrize(("machine", "tile"), [(AVX512, 64), (NEON, 64), (NEON, 32), (NEON, 16)], ids=lambda value: NAMES.get(value, value))
def test_a_depthwise_stencil_stays_in_registers(machine: Machine, tile: int) -> None:
    ((source, _),) = kernels("depthwise", machine, tile)
    loop = busiest(assembly(source, machine))
    assert len(loop.multiplies) >= 3 * min(tile // lanes_of(machine), machine.panels.unrolled)
    check(loop, machine)


@pytest.mark.parametrize("machine", [AVX512, AVX2, NEON], ids=NAMES.get)
def test_scores_of_attention_stay_in_registers(machine: Machine) -> None:
    ((source, _),) = kernels("attention", machine, 64)
    rows, vectors = (int(part[1:]) for part in source.symbol.split("_")[2:4])
    assert all(not loop.spills for loop in inner_loops(assembly(source, machine))) or machine is not NEON
    loop = busiest(assembly(source, machine))
    assert len(loop.accumulators) == rows * vectors > machine.vector.registers // 4
    check(loop, machine)


@pytest.mark.parametrize(("machine", "tile"), [(AVX512, 64), (AVX2, 16), (NEON, 64), (NEON, 16)], ids=lambda value: NAMES.get(value, value))
def test_a_norm_over_features_stays_in_registers(machine: Machine, tile: int) -> None:
    ((source, _),) = kernels("layer_norm", machine, tile)
    check(busiest(assembly(source, machine)), machine)


def test_a_spill_and_a_narrow_register_are_seen() -> None:
    """The parser, on loops as LLVM writes them."""
    good = [".LBB0_1:", "vmovups\t(%rdi), %zmm1", "vfmadd231ps\t(%rsi){1to16}, %zmm1, %zmm0", "jne\t.LBB0_1"]
    outer = ["k:", ".LBB0_0:", "vmovups\t%zmm1, 64(%rsp)", *good, "jb\t.LBB0_0", "retq"]
    assert busiest(outer) == Loop(tuple(good))
    assert (busiest(outer).accumulators, busiest(outer).widths, busiest(outer).spills) == ({"z0"}, {"z"}, [])
    check(busiest(outer), AVX512)
    spilled = [*good[:2], "vmovups\t%zmm0, -64(%rsp)", *good[2:]]
    narrow = [line.replace("zmm", "ymm") for line in good]
    for wrong in (spilled, narrow):
        with pytest.raises(AssertionError):
            check(busiest(wrong), AVX512)
    arm = [".LBB0_1:", "ldr\tq1, [x0, #16]", "fmla\tv4.4s, v6.4s, v5.s[0]", "subs\tw8, w8, #1", "b.ne\t.LBB0_1"]
    assert busiest(arm).accumulators == {"v4"}
    check(busiest(arm), NEON)
    with pytest.raises(AssertionError):
        check(busiest([arm[0], "str\tq4, [sp, #32]", *arm[1:]]), NEON)
