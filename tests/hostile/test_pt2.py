"""`.pt2` files that a hostile hand has changed: nothing in them runs, and they are refused or mean what torch says they mean.

Each is compiled in a child of its own (see ``watched``) within 20 seconds and 1 GiB more than compiling the unchanged file takes. What
would go to Inductor, a graph of checked operators, runs as it is: its C++ compiler is a process that the file did not start.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsec
from sparsec.doors.from_torch.exported import example_arguments
from sparsec.doors.from_torch.pt2 import load_program
from tests.hostile.archives import code
from tests.hostile.mutations import mutated
from tests.hostile.watched import Outcome, watched
from tests.test_bad_pt2 import archive, attacks

SECONDS, BYTES = 20, 1 << 30
MUTATIONS, SOME = 200, 24


class Pruned(nn.Module):
    """Layers that are sparse enough for kernels, over rows whose number is free."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 32)
        self.register_buffer("shift", torch.ones(64))
        for layer in (self.first, self.second):
            layer.weight.data *= torch.rand_like(layer.weight) < 0.05

    def forward(self, x):
        y = torch.relu(self.first(x)) + self.shift
        return self.second(y).reshape(x.shape[0], 32, 1)


def saved() -> bytes:
    """The file of that module, with operators, sizes that are expressions, weights, a buffer and example inputs."""
    program = torch.export.export(Pruned().eval(), (torch.ones(3, 64),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


WHOLE = saved()


def compiled(path: Path, cache: Path) -> str:
    """ "right" where the compiled file gives what torch's own reading of it gives."""
    os.environ["SPARSEC_STRICT"] = "0"
    model = sparsec.compile(path, cache_dir=cache)
    program = load_program(path)
    args, kwargs = example_arguments(program)
    with torch.no_grad():
        wanted = program.module()(*args, **kwargs)
    torch.testing.assert_close(model(*args, **kwargs), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    return "right"


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder for everything, and the peak memory of a child that compiles the file as it was."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph)
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "whole.pt2"
    path.write_bytes(WHOLE)
    compiled(path, folder / "cache")
    whole = watched(lambda: compiled(path, folder / "cache"), folder, 60)
    assert whole.kind == "right" and not whole.seen, whole
    yield folder, whole.peak
    monkeypatch.undo()


def tried(content: bytes, name: str, warm: tuple[Path, int]) -> tuple[Outcome, str]:
    """What came of a file, and what is wrong with that."""
    folder, peak = warm
    path, place = folder / f"{name}.pt2", folder / f"{name}.ran"
    path.write_bytes(content)
    outcome = watched(lambda: compiled(path, folder / "cache"), folder, SECONDS)
    path.unlink()
    wrong = [f"{outcome.kind}: {outcome.text}"] if outcome.kind not in ("refused", "right") else []
    wrong += [f"ran {each}" for each in outcome.seen] + ["wrote its file"] * place.exists()
    wrong += [f"took {(outcome.peak - peak) >> 20} MiB more"] * (outcome.peak - peak > BYTES)
    return outcome, "; ".join(wrong)


def all_tried(numbers: range, warm: tuple[Path, int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    wrong, slowest, most = [], 0.0, 0
    for number in numbers:
        done, content = mutated(WHOLE, number, warm[0] / f"m{number}.ran")
        outcome, why = tried(content, f"m{number}", warm)
        counts[outcome.kind] += 1
        slowest, most = max(slowest, outcome.seconds), max(most, outcome.peak - warm[1])
        wrong += [f"mutation {number} ({done}): {why}"] * bool(why)
    print(f"{dict(counts)}, slowest {slowest:.1f} s, most memory {most >> 20} MiB over the whole file's")
    assert not wrong, "\n".join(wrong)
    return counts


def test_some_mutations(warm: tuple[Path, int]) -> None:
    assert all_tried(range(SOME), warm)["refused"]


@pytest.mark.slow
def test_mutations_run_nothing_and_are_refused_or_right(warm: tuple[Path, int]) -> None:
    counts = all_tried(range(SOME, MUTATIONS), warm)
    assert counts["refused"] > counts["right"] > 5


def test_attacks_run_nothing_when_compiled(warm: tuple[Path, int]) -> None:
    for number, (name, parts) in enumerate(attacks(warm[0] / "attack.ran").items()):
        outcome, why = tried(archive(parts), f"attack{number}", warm)
        assert not why and not (warm[0] / "attack.ran").exists(), f"{name}: {why}"
        assert outcome.kind == "refused" or name == "guard"


def test_the_watch_sees_what_runs(tmp_path: Path) -> None:
    """Else the tests above would say nothing."""
    elsewhere, mark = tmp_path / "elsewhere", "canary_of_hostile_files"
    (tmp_path / "scratch").mkdir()
    for work, seen in (
        (lambda: eval(code(tmp_path / "scratch" / "ran")), "exec"),
        (lambda: __import__(mark), "import"),
        (lambda: os.system("true"), "os.system"),
        (lambda: elsewhere.write_text("x"), "wrote"),
        (lambda: os.kill(os.getpid(), 11), ""),
        (lambda: bytearray(1 << 40), ""),
    ):
        outcome = watched(lambda work=work: str(work()), tmp_path / "scratch")
        assert outcome.kind in ("raw", "died") if not seen else any(seen in each for each in outcome.seen), outcome
