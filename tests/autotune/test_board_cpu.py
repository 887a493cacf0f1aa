"""What a board's Linux says decides whether kernels are measured there, and whether times count."""

import struct

import pytest

from sparsec.autotune.board_cpu import BoardCpu
from sparsec.autotune.tune import is_emulated, processor
from sparsec.backends import backend_for
from sparsec.backends.x86.backend import X86
from sparsec.run.processor import _HWCAP, _HWCAP2, AT_HWCAP, AT_HWCAP2

ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x{}\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0x{}\n\n"
X86_TEXT = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC  \nflags\t\t: {}\n"
MAPS = "00400000-00600000 r-xp 00000000 08:01 123   {}\n7f0000000000-7f0000001000 rw-p 00000000 00:00 0\n"
A53, A76 = {"asimd", "crc32"}, {"asimd", "crc32", "atomics", "asimdrdm", "fphp", "asimdhp", "asimddp", "lrcpc"}


def auxv(flags):
    words = (sum(1 << bit for name, bit in names.items() if name in flags) for names in (_HWCAP, _HWCAP2))
    return b"".join(struct.pack("<QQ", *pair) for pair in ((6, 4096), *zip((AT_HWCAP, AT_HWCAP2), words, strict=True), (0, 0)))


def cpu(target, cpuinfo, flags=(), program="/usr/bin/python3"):
    return BoardCpu.of(target, cpuinfo.encode(), auxv(flags), MAPS.format(program).encode())


@pytest.mark.parametrize(
    ("asked", "part", "flags", "why"),
    [
        ("cortex-a53", "d03", A53, ""),
        ("cortex-a76", "d0b", A76, ""),
        ("cortex-a72", "d03", A53, "It is cortex-a53, not cortex-a72."),
        ("neoverse-n1", "d0b", A76, "It is cortex-a76, not neoverse-n1."),
        ("cortex-a76", "d03", A53, "cortex-a53 lacks dotprod, fullfp16, lse, rcpc, rdm, which cortex-a76 has."),
        ("cortex-a76", "fff", A76, ""),
    ],
)
def test_the_processor_of_an_arm_board(asked, part, flags, why):
    found = cpu(backend_for("arm", asked), ARM.format("41", part), flags)
    assert (found.other_than(backend_for("arm", asked)), found.emulated) == (why, False)


def test_names():
    arm = backend_for("arm", "cortex-a76")
    assert cpu(arm, ARM.format("41", "d03") + ARM.format("41", "d0b"), A76).name == "cortex-a76, cortex-a53"
    assert cpu(arm, ARM.format("61", "022"), A76).name == "implementer 0x61 part 0x022"
    assert cpu(arm, "", A76).name == "unknown"
    assert cpu(X86(), X86_TEXT.format("avx2")).name == "AMD EPYC"


def test_a_board_of_big_and_little_cores_is_either():
    both = ARM.format("41", "d03") + ARM.format("41", "d0b")
    assert not any(cpu(b, both, A76).other_than(b) for b in (backend_for("arm", name) for name in ("cortex-a53", "cortex-a76")))


def test_an_emulated_processor_is_what_it_can_do():
    """Its /proc/cpuinfo is the host's."""
    arm = backend_for("arm", "cortex-a76")
    for host in (X86_TEXT.format("avx2"), ARM.format("41", "d03")):
        found = cpu(arm, host, A76, "/usr/bin/qemu-aarch64-static")
        assert found.emulated and found.name.startswith("emulated on ") and not found.other_than(arm)
    assert "lacks" in cpu(arm, X86_TEXT.format("avx2"), A53, "/usr/bin/qemu-aarch64").other_than(arm)
    assert cpu(X86(), X86_TEXT.replace("AMD EPYC", "QEMU Virtual CPU").format("")).emulated


def test_this_machine():
    here = BoardCpu.here(X86())
    assert here.name == processor() and not here.other_than(X86()) and here.emulated == is_emulated()


def test_an_x86_board_has_the_features_or_is_refused():
    machine = X86().machine
    assert not cpu(X86(), X86_TEXT.format(" ".join((*machine.features, "bmi1")))).other_than(X86())
    assert cpu(X86(), X86_TEXT.format("sse2")).other_than(X86()).startswith("AMD EPYC lacks ")
