"""Rooflines and layout costs: measured once, remembered per machine, harmless where they cannot be kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.autotune import layout_costs as layouts
from sparsec.autotune import roofline as rooflines
from sparsec.autotune.layout_costs import layout_costs
from sparsec.autotune.roofline import Roofline, roofline
from sparsec.backends.x86.backend import X86
from sparsec.backends.x86.machine import machine


def test_the_bound_is_the_slower_of_arithmetic_and_traffic():
    limits = Roofline(peak_gflops=100.0, l2_gbs=50.0, memory_gbs=10.0)
    assert limits.bound_s(1e9, 0) == pytest.approx(0.01)
    assert limits.bound_s(0, 1e9) == pytest.approx(0.02)
    assert limits.bound_s(1e9, 1e9, threads=2) == pytest.approx(0.01)
    assert limits.cycles_s(1e9) == pytest.approx(0.32)


def test_a_measured_roofline_is_plausible_and_remembered(tmp_path, monkeypatch):
    found = roofline(machine(), tmp_path)
    assert 1 < found.peak_gflops < 5000 and 1 < found.memory_gbs <= found.l2_gbs * 2
    monkeypatch.setattr(rooflines, "measure", lambda l2: pytest.fail("measured again"))
    assert roofline(machine(), tmp_path) == found


@pytest.mark.parametrize("content", ["", "{", '{"peak": 1}', "[]"])
def test_a_damaged_roofline_is_measured_again(tmp_path, monkeypatch, content):
    limits = Roofline(1.0, 2.0, 3.0)
    monkeypatch.setattr(rooflines, "measure", lambda l2: limits)
    (tmp_path / f"roofline-{machine().key()}.json").write_text(content)
    assert roofline(machine(), tmp_path) == limits == roofline(machine(), tmp_path)


def test_a_roofline_that_cannot_be_kept_is_still_a_roofline(monkeypatch):
    limits = Roofline(1.0, 2.0, 3.0)
    monkeypatch.setattr(rooflines, "measure", lambda l2: limits)
    assert roofline(machine(), Path("/proc/nowhere")) == limits == roofline(machine(), None)


def test_layout_costs_are_measured_when_tuning_only(tmp_path, monkeypatch):
    assert layout_costs(X86(), tmp_path, measuring=False) == X86().costs()
    found = layout_costs(X86(), tmp_path, measuring=True)
    assert 0 < found.convert < 1e-6 and 0 <= found.turned_read < 1e-6
    monkeypatch.setattr(layouts, "measure", lambda backend, cache: pytest.fail("measured again"))
    assert layout_costs(X86(), tmp_path, measuring=True) == found == layout_costs(X86(), tmp_path, measuring=False)


def test_damaged_layout_costs_are_measured_again(tmp_path, monkeypatch):
    costs = replace(X86().costs(), convert=1.0, turned_read=2.0)
    monkeypatch.setattr(layouts, "measure", lambda backend, cache: costs)
    (tmp_path / f"layouts-{machine().key()}.json").write_text('{"convert": 1}')
    assert layout_costs(X86(), tmp_path, measuring=True) == costs
