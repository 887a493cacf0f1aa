"""Code that asks for sizes: a program serves those for which it would do the same, and says so of others, through every way in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only, tree_structure

import sparsec
from sparsec.doors.from_torch.batches import dependence_on_batch
from sparsec.errors import InvalidInput, UnsupportedModel
from tests.fuzz.prelude import seeded

AUTO = torch.export.Dim.AUTO
BATCHES, TOKENS = (1, 2, 3, 4, 5, 8, 9, 16), (3, 6, 7, 33)


class Asks(nn.Module):
    """A pruned layer with a table, and a function of it and the input."""

    def __init__(self, then: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(16, 16), then
        self.layer.register_buffer("table", torch.randn(64, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer, x)


def if_(condition: Callable[..., bool]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Another function where a condition on batch and tokens holds."""
    return lambda layer, x: layer(x).relu() if condition(*x.shape[:2]) else layer(x)


def first_marked(batch: int) -> Tensor:
    made = torch.zeros(batch, 1, 16)
    made[0] = 1
    return made


def span(table: Tensor, size: Tensor) -> Tensor:
    """What lies round the middle, with a size that is a tensor: as DeBERTa takes relative positions."""
    return table[32 - size : 32 + size, :].mean(0)


CONDITIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "more than 3": if_(lambda n, t: n > 3),
    "at least 8": if_(lambda n, t: n >= 8),
    "even": if_(lambda n, t: n % 2 == 0),
    "one": if_(lambda n, t: n == 1),
    "five": if_(lambda n, t: n == 5),
    "between": if_(lambda n, t: 2 < n < 5),
    "nested": if_(lambda n, t: n != 3 and (n < 5 or n > 8)),
    "even tokens": if_(lambda n, t: t % 2 == 0),
    "more than 6 tokens": if_(lambda n, t: t > 6),
    "more tokens than samples": if_(lambda n, t: t > n),
    "squeeze": lambda layer, x: layer(x).squeeze(),
    "length": lambda layer, x: layer(x).relu() if len(x) > 3 else layer(x),
    "loop": lambda layer, x: torch.cat([layer(x[n : n + 1]) for n in range(x.shape[0])]),
    "range": lambda layer, x: layer(x).relu() if x.shape[0] in range(3, 5) else layer(x),
    "harmless": lambda layer, x: layer(x).view(len(x), -1, 16) if x.shape[0] > 0 else x,
    "reshaped": lambda layer, x: layer(x).view(x.shape[0], -1, 16),
    "halves": lambda layer, x: layer(x) if x.chunk(2, 1)[0].shape == x.chunk(2, 1)[1].shape else layer(x).relu(),
    # What keeps all of some batches, and is nothing in a graph that is made for one of them.
    "first one": lambda layer, x: layer(x[:1]),
    "first two": lambda layer, x: layer(x)[:2],
    "first four": lambda layer, x: layer(x[:4]),
    "first eight": lambda layer, x: layer(x)[0:8],
    "last two": lambda layer, x: layer(x[-2:]),
    "narrow": lambda layer, x: layer(x).narrow(0, 0, 1) + layer(x),
    "split": lambda layer, x: layer(x.split(4)[0]),
    "chunk": lambda layer, x: layer(x.chunk(3)[0]),
    "samples and tokens": lambda layer, x: layer(x.flatten(0, 1)[:24]),
    "other axes": lambda layer, x: layer(x[:, :64])[..., :16],
    # The size as a number, or in a constant.
    "share": lambda layer, x: layer(x) / x.shape[0],
    "bound": lambda layer, x: layer(x).clamp(max=x.shape[0] / 4),
    "rows of a table": lambda layer, x: layer(x) + layer.table[: x.shape[0]],
    "row of a table": lambda layer, x: layer(x) + layer.table[x.shape[0] - 1],
    "mean of a table": lambda layer, x: layer(x) + layer.table[: x.shape[0]].mean(0),
    "span of samples": lambda layer, x: layer(x) + span(layer.table, torch.tensor(min(x.shape[0], 8))),
    "span of tokens": lambda layer, x: layer(x) + span(layer.table, torch.tensor(x.shape[1])),
    "steps of a table": lambda layer, x: layer(x) + layer.table[x.shape[0] // 3],
    "steps of tokens": lambda layer, x: layer(x) + layer.table[x.shape[1] // 7],
    "tokens of a table": lambda layer, x: layer(x) + layer.table[: x.shape[1], 0],
    "numbered": lambda layer, x: layer(x) + torch.arange(x.shape[0])[:, None, None],
    "own rows": lambda layer, x: layer(x)[torch.arange(x.shape[0])],
    "next rows": lambda layer, x: layer(x)[torch.arange(x.shape[0]) - 1],
    "counted": lambda layer, x: layer(x) * torch.ones(x.shape[0]).cumsum(0)[:, None, None],
    "triangle": lambda layer, x: layer(x) + torch.ones(x.shape[0], 16).tril()[:, None],
    "new and counted": lambda layer, x: layer(x) * x.new_ones(x.shape[0]).cumsum(0)[:, None, None],
    "alike and counted": lambda layer, x: layer(x) * torch.ones_like(x[:, 0, 0]).cumsum(0)[:, None, None],
    "summed": lambda layer, x: layer(x) * torch.ones(x.shape[0]).sum(),
    "first marked": lambda layer, x: layer(x) + first_marked(x.shape[0]),
    "with the weight": lambda layer, x: layer(x) + (torch.ones(x.shape[0], 1) @ layer.weight.sum(0, keepdim=True))[:, None],
    "expanded": lambda layer, x: layer(x) + layer.table[:1].expand(x.shape[0], -1, -1),
    "repeated": lambda layer, x: layer(x) + layer.table[:1].repeat(x.shape[0], 1, 1),
    # Results that are no tensors.
    "length returned": lambda layer, x: (layer(x), x.shape[0]),
    "share returned": lambda layer, x: [layer(x), 1 / x.shape[0], x.shape[1]],
    "length in a name": lambda layer, x: {f"of {len(x)}": layer(x)},
    "tokens in a name": lambda layer, x: {f"of {x.shape[1]}": layer(x)},
}


FAST = (
    "bound",
    "span of samples",
    "span of tokens",
    "rows of a table",
    "more than 3",
    "first two",
    "last two",
    "narrow",
    "length returned",
)


def outcome(call: Callable[[Tensor], Any], x: Tensor) -> Any:
    """None where the call is refused."""
    try:
        return call(x)
    except (InvalidInput, UnsupportedModel):
        return None


def same(found: Any, wanted: Any) -> None:
    """Equal in structure and in what is no tensor, close in tensors."""
    assert tree_structure(found) == tree_structure(wanted)
    for a, b in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        else:
            assert a == b


def served(call: Callable[[Tensor], Tensor], model: nn.Module, shapes: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """The shapes that are not refused, all of them right."""
    found = set()
    for shape in shapes:
        x = torch.randn(*shape, 16)
        with torch.no_grad():
            result, wanted = outcome(call, x), model(x)
        if result is not None:
            same(result, wanted)
            found.add(shape)
    return found


def artifact(fast: Any, folder: Path) -> Callable[[Tensor], Any]:
    loaded = sparsec.load(fast.save(folder / "net.sparsec"))
    return lambda x: tree_map_only(np.ndarray, torch.from_numpy, loaded(x.numpy()))


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.turns(4)
def test_other_batches_are_right_or_refused(without_inductor: None, tmp_path: Path, name: str, batch: int) -> None:
    model, shapes = seeded(Asks(CONDITIONS[name]), "90%", 0), [(n, 6) for n in BATCHES]
    fast = sparsec.compile(model, (torch.randn(batch, 6, 16),), threads=1)
    found = served(fast, model, shapes)
    assert (batch, 6) in found
    if not fast.explain().uncovered and "returned" not in name:
        assert served(artifact(fast, tmp_path), model, shapes) == found
    if name in ("harmless", "even tokens", "more than 6 tokens", "reshaped", "other axes", "tokens in a name", "span of tokens"):
        assert found == {*shapes}
    if (name, batch) in (("one", 2), ("squeeze", 4)):
        assert found == {*shapes} - {(1, 6)}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in CONDITIONS])
@pytest.mark.turns(7)
def test_torch_compile_is_right_at_every_batch(
    strict: None, without_inductor: None, kernels: Path, name: str, dynamic: bool | None
) -> None:
    if name == "range":
        pytest.skip("Dynamo cannot ask whether a symbol is in a range.")
    model, shapes = seeded(Asks(CONDITIONS[name]), "90%", 0), [(n, 6) for n in (4, 2, 9, 3, 1, 8, 5)]
    fast = torch.compile(model, backend="sparse", dynamic=dynamic, options={"threads": 1, "cache_dir": kernels})
    assert served(fast, model, shapes) == {*shapes}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["first two", "last two", "narrow", "length returned", "reshaped", "other axes"])
def test_graphs_that_users_trace_have_code(tmp_path: Path, name: str, batch: int) -> None:
    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Any:
            return CONDITIONS[name](self.layer, x)

    model, shapes = seeded(Traced(), "90%", 0), [(n, 6) for n in BATCHES]
    found = served(sparsec.compile(fx.symbolic_trace(model), (torch.randn(batch, 6, 16),), threads=1), model, shapes)
    assert (batch, 6) in found
    if name in ("reshaped", "other axes"):
        assert found == {*shapes}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 6), (3, 7)])
@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.turns(9)
def test_free_sizes_are_right_or_refused(without_inductor: None, tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    model, shapes = seeded(Asks(CONDITIONS[name]), "90%", 0), [(n, t) for n in (1, 2, 3, 4, 8) for t in TOKENS]
    example, free = (torch.randn(*shape, 16),), ({0: AUTO, 1: AUTO},)
    if "returned" in name or "span" in name or name == "tokens in a name":
        with pytest.raises(UnsupportedModel, match=r"depends on (its inputs|values)|named after a free size"):
            sparsec.compile(model, example, threads=1, dynamic_shapes=free)
        return
    fast = sparsec.compile(model, example, threads=1, dynamic_shapes=free)
    assert (fast._captured.one_batch == "") or name not in ("expanded", "repeated", "own rows", "reshaped", "tokens of a table")
    found = served(fast, model, shapes)
    assert shape in found
    if not fast.explain().uncovered and "returned" not in name:
        served(artifact(fast, tmp_path), model, shapes)


def test_a_range_of_the_user_holds_in_the_artifact(tmp_path: Path) -> None:
    model, shapes = seeded(Asks(lambda layer, x: layer(x)), "90%", 0), [(n, 6) for n in BATCHES]
    fast = sparsec.compile(model, (torch.randn(2, 6, 16),), threads=1, dynamic_shapes=({0: torch.export.Dim("n", max=4)},))
    assert served(fast, model, shapes) == served(artifact(fast, tmp_path), model, shapes) == {(n, 6) for n in (1, 2, 3, 4)}


def test_what_is_refused_is_said(tmp_path: Path) -> None:
    model = seeded(Asks(CONDITIONS["one"]), "90%", 0)
    fast = sparsec.compile(model, (torch.randn(2, 6, 16),), threads=1)
    assert any("batches of 2 or more only: other functions run" in note for note in fast.explain().notes)
    with pytest.raises(InvalidInput, match="Other batches are refused"):
        fast(torch.randn(1, 6, 16))
    with pytest.raises(InvalidInput, match="compiled for batches of 2 or more, the inputs have 1"):
        artifact(fast, tmp_path)(torch.randn(1, 6, 16))


FIXED: dict[str, Callable[..., Any]] = {
    "parts of the model run in torch": lambda layer, x: layer(x).cumsum(1),
    "results are views that do not follow it": lambda layer, x: (y := layer(x), y.transpose(0, 1)),
}


@pytest.mark.parametrize("reason", FIXED)
def test_what_fixes_the_batch_is_said_and_free_sizes_lift_it(reason: str) -> None:
    model = seeded(Asks(FIXED[reason]), "90%", 0)
    fast = sparsec.compile(model, (torch.randn(2, 6, 16),), threads=1)
    assert any(note.startswith(f"compiled for a batch of 2 only: {reason} (dynamic_shapes=") for note in fast.explain().notes)
    with pytest.raises(InvalidInput, match=rf"Other batches are refused: {reason} \(dynamic_shapes="):
        fast(torch.randn(3, 6, 16))
    freed = sparsec.compile(model, (torch.randn(2, 6, 16),), threads=1, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert served(freed, model, [(n, 6) for n in BATCHES]) == {(n, 6) for n in BATCHES}
    assert not any("only" in note for note in freed.explain().notes)


def test_conditions_that_change_nothing_leave_the_batch_free() -> None:
    model = Asks(lambda layer, x: layer(x) if x.shape[0] > 3 else layer.forward(x))
    assert dependence_on_batch(model, (torch.randn(2, 6, 16),), {}) == ("", 0)


@pytest.mark.parametrize("name", ["even", "more than 3", "first four", "squeeze", "bound", "row of a table"])
def test_conditions_hold_for_programs_from_files(tmp_path: Path, name: str) -> None:
    model, shapes = seeded(Asks(CONDITIONS[name]), "90%", 0), [(n, 6) for n in BATCHES]
    program = torch.export.export(model, (torch.randn(4, 6, 16),), dynamic_shapes=({0: AUTO},))
    torch.export.save(program, tmp_path / "model.pt2")
    assert (4, 6) in served(sparsec.compile(tmp_path / "model.pt2", threads=1), model, shapes)


def test_looking_at_other_batches_leaves_the_model_as_it_is() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(16, 16), nn.Parameter(torch.ones(16), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            self.scale.mul_(torch.full((16,), 2.0))
            return self.layer(x) * self.scale

    model = Writing().eval()
    dependence_on_batch(model, (torch.randn(2, 6, 16),), {})
    assert torch.equal(model.scale, torch.ones(16))
