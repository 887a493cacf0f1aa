"""What is read from a processor's flags."""

import dataclasses
import json
import subprocess
import sys

import pytest

from sparsec.backends.base import Machine
from sparsec.backends.x86 import machine as module
from sparsec.backends.x86.machine import _AVX2, _AVX512, describe
from sparsec.errors import InvalidInput, MachineError
from sparsec.run import processor

AVX2, AVX512 = frozenset(_AVX2), frozenset(_AVX2) | frozenset(_AVX512)


def test_vectors_follow_the_flags():
    narrow, wide = describe(AVX2, 2), describe(AVX512, 4)
    assert (narrow.vector.lanes, narrow.vector.registers, narrow.mcpu, narrow.cores) == (8, 16, "x86-64-v3", 2)
    assert (wide.vector.lanes, wide.vector.registers, wide.mcpu, wide.cores) == (16, 32, "x86-64-v4", 4)
    assert set(narrow.features) < set(wide.features)
    assert narrow.key() != wide.key()
    assert (narrow.tuning, wide.tuning) == ((), ("-prefer-256-bit",))


@pytest.mark.parametrize("flags", [AVX2, AVX512])
def test_a_machine_travels_as_json(flags):
    here = describe(flags, 2)
    assert Machine.of(json.loads(json.dumps(dataclasses.asdict(here)))) == here
    plain = dataclasses.replace(here, vector=dataclasses.replace(here.vector, permute=None, dots=("int8",)))
    assert Machine.of(json.loads(json.dumps(dataclasses.asdict(plain)))) == plain


def test_the_identity_that_records_and_caches_know():
    wide = dataclasses.replace(describe(AVX512, 1), l1=48 << 10, l2=2 << 20)
    assert wide.key() == "x86_64-x86-64-v4-16x32-l1.48k-l2.2048k"


@pytest.mark.parametrize("flag", sorted(_AVX512))
def test_part_of_avx512_is_avx2(flag):
    assert describe(AVX512 - {flag}, 1) == describe(AVX2, 1)


@pytest.mark.parametrize("flag", sorted(_AVX2))
def test_every_flag_of_avx2_is_needed(flag):
    with pytest.raises(MachineError, match=f"without {flag}"):
        describe(AVX512 - {flag}, 1)


def test_another_architecture_is_refused(monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    with pytest.raises(MachineError, match="this is aarch64"):
        describe(frozenset({"asimd"}), 1)


@pytest.mark.parametrize(("cpu", "flags"), [("x86-64-v3", AVX2), ("x86-64-v4", AVX512)])
def test_levels_can_be_named(cpu, flags):
    named = module.machine(cpu)
    assert named == describe(flags, named.cores) and named.mcpu == cpu
    assert named.peak_gflops == 12 * named.vector.lanes and named.l2_gbs > named.memory_gbs > 0


@pytest.mark.parametrize("cpu", ["x86-64-v2", "cortex-a76", ""])
def test_unknown_levels_are_refused_with_the_known_ones(cpu):
    with pytest.raises(InvalidInput, match="x86-64-v3, x86-64-v4"):
        module.machine(cpu)


def test_unreadable_flags_are_no_flags(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError

    monkeypatch.setattr(module.Path, "read_text", refuse)
    assert processor.flags.__wrapped__() == frozenset()
    assert module._cache_bytes(1, "Data", 123) == 123


def test_the_environment_restricts_to_avx2():
    code = "from sparsec.backends.x86.machine import machine; print(machine().vector.nbytes)"
    done = subprocess.run([sys.executable, "-c", code], env={"SPARSEC_ISA": "avx2"}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "32"
