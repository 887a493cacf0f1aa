"""Predictions for ARM: the shapes of others' kernels, and what a layer is made of."""

import re
import shutil
import sys

import pytest

from sparsec.backends.arm.backend import Arm
from sparsec.backends.arm.machine import describe
from sparsec.errors import MachineError
from tests.bench.test_scripts import FOLDER, run

needed = pytest.mark.skipif(
    not any(shutil.which(f"llvm-mca{suffix}") for suffix in ("", *(f"-{version}" for version in range(16, 23)))),
    reason="no llvm-mca on PATH (Debian's package llvm-19 has one)",
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("arm", "arm_rivals", "kernels"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import arm

    return arm


def test_shapes_have_the_loads_the_multiply_adds_and_the_spills_of_their_kernels(script) -> None:
    (unstructured,), _, (blocks, mnn) = script.SHAPES.values()
    for shape, pixels, loads, multiplies, spilled in (
        (unstructured, 32, 6, 8, 0),
        (unstructured, 1, 3, 1, 0),
        (blocks, 32, 6, 32, 4),
        (mnn, 16, 4, 16, 0),
    ):
        lines = shape.turn(pixels)
        found = [line for line in lines if line.startswith("ld") and "[sp" not in line]
        assert len(found) == loads, shape.name
        assert sum(line.startswith("fmla") for line in lines) == multiplies
        assert sum("[sp" in line for line in lines) == 2 * spilled


def test_registers_of_a_shape_do_not_collide(script) -> None:
    for shape in (shape for shapes in script.SHAPES.values() for shape in shapes):
        for pixels in shape.widths:
            products = [re.findall(r"v(\d+)", line) for line in shape.turn(pixels) if line.startswith("fmla")]
            sums, inputs = {int(p[0]) for p in products}, {int(p[1]) for p in products}
            assert not sums & inputs and 0 not in sums | inputs and max(sums | inputs) < 32, (shape.name, pixels)


def test_pixels_are_covered_once(script) -> None:
    shape = script.SHAPES[1][0]
    assert shape.panels(49) == {32: 1, 16: 1, 8: 0, 4: 0, 2: 0, 1: 1}
    assert shape.layer(49, 10, 2, lambda lines: 1.0) == 3 * (10 + 2)


def test_a_layer_is_its_turns(script) -> None:
    """Instructions of a layer of known size, by hand."""
    machine = describe("neoverse-n1")
    layer = script.layer_of((64, 128, 14, 1), False, 0.25, 1, script.np.random.default_rng(0))
    task = script.task_of(layer, False, 64)
    backend = Arm(machine)
    schedule = (("kernel", "spmm"), ("vectors", 16), ("unroll", 4), ("parts", 1), ("tile", 64))
    call = backend.lower(task, schedule)[0].calls[0]
    inner, (rows, *_) = script.loops(call.source, machine)
    groups, tiles = int(call.constants["row_start"][-1]) // 4, 4
    assert call.constants["row_start"][-1] >= (layer.weight != 0).sum()
    whole = script.ours(call, machine, script.instructions)
    least = tiles * (groups * script.instructions(inner.lines) + 64 * script.instructions(rows.lines))
    assert least < whole < 1.02 * least


@needed
def test_cycles_are_those_of_the_slowest_part(script) -> None:
    """Sixteen multiply-adds that two pipes share, and a chain that none can share."""
    independent = tuple(f"fmla v{n}.4s, v30.4s, v31.4s" for n in range(16))
    assert script.cycles(independent, "neoverse-n1") == pytest.approx(8, abs=0.2)
    assert script.cycles(("fadd v0.4s, v0.4s, v1.4s",) * 4, "neoverse-n1") == pytest.approx(8, abs=0.2)


def test_without_an_analyser_its_package_is_named(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(MachineError, match=r"analyser is not there\.\n.*llvm-mca.*\n.*llvm-19"):
        script.analyser()


@needed
@pytest.mark.slow
def test_the_script_prints_a_table_of_predictions() -> None:
    text = run("arm.py", "--model", "bert_base", "--density", "0.1", "--cpu", "neoverse-n1")
    assert "neoverse-n1: bert_base, density 0.1, blocks of 4" in text and "XNNPACK 32x1" in text and "MNN 16x4" in text
    assert "predicted by llvm-mca" in text and "us" not in text.split("predicted")[0].split()
