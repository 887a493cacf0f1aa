"""A backend of scalar kernels that knows nothing of those for CPUs, through the same driver: digits and a transformer as in eager."""

import ast
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec import backends
from sparsec.lower.layouts import Layouts
from sparsec.lower.spec import KernelSpec
from sparsec.models.digits_cnn import digits_cnn
from sparsec.models.prune import prune
from tests.token_models import vit
from tests.toy import backend as toy
from tests.toy.backend import Toy

TOLERANCE = 1e-5
TOY = backends.Target("toy", (), "tests.toy")


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, TOY))


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


MODELS = {
    "digits": (lambda: prune(digits_cnn(), 0.9), images(3, 1, 8, 8)),
    "transformer": (lambda: vit(depth=2), images(2, 3, 32, 32)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_networks_run_as_one_region_as_in_eager(name: str, threads: int, tmp_path: Path) -> None:
    make, x = MODELS[name]
    model: nn.Module = make().eval()
    fast = sparsec.compile(model, (x,), target="toy", tune="off", threads=threads, cache_dir=tmp_path)
    assert fast._compiled.fully_compiled and fast._compiled.programs[0].program.executor == "toy"
    for batch in (len(x), 1):
        wanted = model(x[:batch])
        assert float((fast(x[:batch]) - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())


class Elsewhere(Toy):
    """A toy that says of its kernels that they read, or write, what no region has."""

    sides: ClassVar[dict[str, tuple[str, ...]]] = {}

    def layouts(self, spec: KernelSpec) -> Layouts:
        return Layouts(**self.sides) if spec.op == "conv2d" else Layouts()  # type: ignore[arg-type]


@pytest.mark.parametrize(("side", "verb"), [("reads", "read"), ("writes", "write")])
def test_a_kernel_that_is_offered_for_a_layout_it_cannot_read(side: str, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its region stays dense, with the reason; where errors are not tolerated they say who promised what."""
    monkeypatch.setattr(toy, "BACKEND", Elsewhere)
    monkeypatch.setattr(Elsewhere, "sides", {side: ("nchw",)})
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3)).eval(), images(1, 2, 5, 6)
    says = rf"the backend 'toy' offers conv2d, but its kernels do not {verb} maps that are halo: they {verb} nchw"
    with pytest.raises(ValueError, match=says):
        sparsec.compile(model, (x,), target="toy", tune="off", threads=1)
    monkeypatch.setenv("SPARSEC_STRICT", "0")
    with pytest.warns(RuntimeWarning, match=says), torch.no_grad():
        torch.testing.assert_close(sparsec.compile(model, (x,), target="toy", tune="off", threads=1)(x), model(x))


def test_it_needs_nothing_of_backends_for_cpus_and_little_at_all() -> None:
    lines = 0
    for path in (Path(__file__).parents[1] / "toy").glob("*.py"):
        text = path.read_text()
        lines += sum(bool(line.strip()) for line in text.splitlines())
        names = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.startswith(("sparsec.backends.cpu", "sparsec.backends.x86"))]
    assert lines <= 200
