"""Writes through views, and to what views show: as in eager mode through every door, or refused by objects and eager in torch.compile."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.doors.from_torch.writes import UnfollowedWrite, overlaps

Viewed = Callable[[Tensor], Tensor]

#: Views of [2, 12, 14, 14], by what torch's functional form makes of a write to them.
FOLLOWED: dict[str, Viewed] = {
    "select": lambda y: y.select(1, 3),
    "last sample": lambda y: y[-1],
    "steps": lambda y: y[:, 1:7:2],
    "steps of steps": lambda y: y[:, 2:][:, ::3][:, 1],
    "narrow": lambda y: y.narrow(1, 2, 3),
    "permute": lambda y: y.permute(0, 2, 3, 1),
    "mT": lambda y: y.mT,
    "movedim": lambda y: y.movedim(1, -1),
    "squeeze": lambda y: y[:, :1].squeeze(1),
    "squeeze two": lambda y: y[:1, :, :1].squeeze((0, 2)),
    "unsqueeze": lambda y: y.unsqueeze(2),
    "view": lambda y: y.view(2, -1),
    "flatten": lambda y: y.flatten(1),
    "unflatten": lambda y: y.unflatten(1, (3, 4)),
    "ravel": lambda y: y.ravel(),
    "contiguous": lambda y: y.contiguous(),
    "reshape": lambda y: y.reshape(2, 12, -1),
    "split": lambda y: y.split(5, 1)[2],
    "split of sizes": lambda y: y.split([2, 4, 6], 1)[1],
    "chunk": lambda y: y.chunk(5, 1)[1],
    "tensor_split": lambda y: y.tensor_split([2, 7], 1)[1],
    "unbind": lambda y: y.unbind(1)[2],
    "hsplit": lambda y: y.hsplit(2)[1],
    "windows": lambda y: y.unfold(2, 2, 2),
    "diagonal": lambda y: y.diagonal(2, 2, 3),
    "diagonal of channels": lambda y: y.diagonal(-1, 1, 2),
    "as_strided": lambda y: y.as_strided((4, 3), (7, 2), 5),
    "detach": lambda y: y.detach(),
    "swapaxes": lambda y: y.swapaxes(1, 2),
    "real part": lambda y: torch.view_as_real(torch.view_as_complex(y.view(2, 12, 14, 7, 2)))[..., 0],
    "as it is": lambda y: y.to(torch.float32).float(),
    "expanded by nothing": lambda y: y.expand(-1, -1, -1, -1),
    "one of an expanded": lambda y: y[:, :1].expand_as(y)[:, 2],
    "einsum": lambda y: torch.einsum("abcd->acbd", y),
    "einsum of a diagonal": lambda y: torch.einsum("abcc->abc", y),
    "atleast": lambda y: torch.atleast_3d(y[0, 0]),
}
UNFOLLOWED: dict[str, Viewed] = {
    "expand": lambda y: y[:, :1].expand_as(y),
    "expand samples": lambda y: y[:1].expand(3, *y.shape[1:]),
    "new axis": lambda y: y.unsqueeze(0).expand(2, *y.shape),
    "part of an expanded": lambda y: y[:, :1].expand_as(y)[:, 2:4],
    "broadcast_to": lambda y: torch.broadcast_to(y, (2, *y.shape)),
    "broadcast_tensors": lambda y: torch.broadcast_tensors(y, y[:, :1])[1],
    "meshgrid": lambda y: torch.meshgrid(y[0, 0, 0], y[0, 0, 1], indexing="ij")[0],
    "windows that overlap": lambda y: y.unfold(2, 3, 1),
    "windows with a rest": lambda y: y.unfold(2, 3, 3),
    "windows with gaps": lambda y: y.unfold(2, 2, 3),
    "one window": lambda y: y.unfold(2, 14, 1),
    "part of windows": lambda y: y.unfold(2, 3, 3)[:, 2:4],
    "unsafe_split": lambda y: torch.unsafe_split(y, 5, 1)[1],
    "unsafe_chunk": lambda y: torch.unsafe_chunk(y, 3, 1)[1],
}
VIEWS = FOLLOWED | UNFOLLOWED
WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "fill_": lambda v: v.fill_(2),
    "mul_": lambda v: v.mul_(3),
    "copy_": lambda v: v.copy_(v.flip(-1)),
    "masked_fill_": lambda v: v.masked_fill_(v > 0, 1),
}


class Through(nn.Module):
    """Writes to a view of a layer's result; gives both."""

    def __init__(self, view: Viewed, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.view, self.write = nn.Conv2d(12, 12, 1), view, write

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return self.write(self.view(y)) * 1, y * 1


class Beneath(Through):
    """Writes to what a view shows; gives both."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        shown = self.view(y)
        self.write(y)
        return shown * 1, y * 1


X = torch.randn(2, 12, 14, 14)


def eager(model: nn.Module) -> tuple[Tensor, ...] | None:
    """What eager mode gives; None where it refuses to write."""
    try:
        with torch.no_grad():
            return model(X)
    except RuntimeError:
        return None


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:No kernel of sparsec covers", "ignore:Use of masked_fill_ on expanded")
@pytest.mark.parametrize("names", [("fill_",), pytest.param(("mul_", "copy_", "masked_fill_"), marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("kind", [Through, pytest.param(Beneath, marks=pytest.mark.slow)])
@pytest.mark.parametrize("view", VIEWS)
def test_objects_write_what_eager_mode_writes_or_refuse(
    kind: type[Through], view: str, names: tuple[str, ...], without_inductor: None
) -> None:
    served, asked = [], 0
    for name in names:
        model = kind(VIEWS[view], WRITES[name]).eval()
        if (wanted := eager(model)) is None:
            continue
        asked += 1
        try:
            same(sparsec.compile(model, (X,), threads=1)(X), wanted)
            served.append(name)
        except UnfollowedWrite as refused:
            assert view in UNFOLLOWED and "test_writes.py" in str(refused)
    assert asked == 0 or bool(served) == (view in FOLLOWED or (kind is Beneath and not view.startswith("unsafe")))


@pytest.mark.filterwarnings("ignore:Use of masked_fill_ on expanded")
@pytest.mark.parametrize("kind", [Through, Beneath])
@pytest.mark.parametrize("view", [pytest.param(view, marks=[pytest.mark.slow] * (" " in view)) for view in UNFOLLOWED])
@pytest.mark.turns(3)
def test_torch_compile_runs_them_as_in_eager_mode(kind: type[Through], view: str, caplog: pytest.LogCaptureFixture) -> None:
    model = kind(VIEWS[view], WRITES["fill_"]).eval()
    wanted, fast = eager(model), torch.compile(model, backend="sparse")
    assert wanted is not None
    with torch.no_grad():
        for _ in range(2):
            same(fast(X), wanted)
    said = [line for line in caplog.messages if "Runs as in eager mode" in line]
    assert len(said) == (kind is Through or view.startswith("unsafe"))


def test_programs_from_files_are_asked_too(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Through(UNFOLLOWED["expand"], WRITES["fill_"]).eval(), (X,)), tmp_path / "net.pt2")
    with pytest.raises(UnfollowedWrite, match="elements share memory"):
        sparsec.compile(tmp_path / "net.pt2", threads=1)


def test_free_sizes_stay_free() -> None:
    """Strides are looked at without being compiled in."""
    model = Through(FOLLOWED["steps"], WRITES["mul_"]).eval()
    free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    fast = sparsec.compile(model, (X,), threads=1, dynamic_shapes=free)
    for shape in ((1, 12, 5, 9), (3, 12, 14, 2)):
        x = torch.randn(shape)
        with torch.no_grad():
            same(fast(x), model(x))


@pytest.mark.parametrize("shape", [(0,), (1,), (4,), (2, 3), (3, 1, 2), (2, 2, 2)])
def test_overlaps_are_those_of_the_addresses(shape: tuple[int, ...]) -> None:
    """For all small strides: said of all that share an address, and of none whose axes nest."""
    from itertools import product

    memory = torch.arange(64)
    for strides in product(range(5), repeat=len(shape)):
        tensor = memory.as_strided(shape, strides)
        shares = tensor.unique().numel() < tensor.numel()
        assert overlaps(tensor) >= shares, strides
    for tensor in (torch.ones(3, 4, 5).permute(2, 0, 1)[:, ::2], torch.ones(6, 6).diagonal(), torch.ones(8)[1::3]):
        assert not overlaps(tensor)
