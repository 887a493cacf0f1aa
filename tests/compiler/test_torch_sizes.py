"""Numbers of tokens behind torch.compile: which symbol they are, which entries serve them, when a size is given up."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsec.doors.from_torch.capture import capture
from sparsec.doors.from_torch.dynamo import copied, weight_positions
from sparsec.doors.torch_compile.contents import Fingerprint
from sparsec.doors.torch_compile.entries import Entry, Table, free_batch
from sparsec.doors.torch_compile.free_sizes import _FREE, TOKENS, TokenSizes, token_sizes
from sparsec.errors import UnsupportedModel
from sparsec.ir.symbols import BUCKET, SymbolSpec, bucket
from sparsec.run.affine import Affine
from tests.compiler.stand_in import StandIn, compiled, warnings_in

WIDTH = 8


class Layer(nn.Module):
    """A layer on tokens [N,T,WIDTH] with a mask [N,T]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x) * mask[:, :, None]


def inputs(batch: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, count, WIDTH), torch.ones(batch, count)


# Which symbol


def graphs(model: nn.Module, *calls: tuple) -> list[TokenSizes | None]:
    """What is found in each graph that Dynamo makes during some calls."""
    found = []

    def backend(graph_module, example_inputs):
        own = copied(graph_module)
        found.append(token_sizes(own, weight_positions(own, example_inputs)))
        return graph_module.forward

    torch._dynamo.reset()
    fast = torch.compile(model.eval(), backend=backend)
    with torch.no_grad():
        for call in calls:
            fast(*call)
    return found


def test_nothing_is_free_until_sizes_change():
    first, second = graphs(Layer(), inputs(2, 5), inputs(2, 6), inputs(2, 7))
    assert first is None
    assert second is not None
    assert len(second.tensors) == 2
    assert len(second.numbers) == 1
    assert second.outputs == ((0, Affine(TOKENS), 0),)


def test_a_batch_may_be_free_too():
    *_, last = graphs(Layer(), inputs(2, 5), inputs(3, 6), inputs(4, 7))
    assert last is not None
    assert len(last.tensors) == 2
    assert last.outputs == ((0, Affine(TOKENS), 0),)


class Placed(Layer):
    """The same with 40 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(40, WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x + self.places[: x.shape[1]], mask)


def test_the_most_tokens_are_what_the_graph_can_be_called_with():
    *_, free = graphs(Layer(), inputs(2, 5), inputs(2, 6))
    *_, placed = graphs(Placed(), inputs(2, 5), inputs(3, 6))
    assert free is not None and placed is not None
    assert [free.most(size) for size in (6, 64, 65)] == [64, 64, 128]
    assert [placed.most(size) for size in (6, 39, 40)] == [40, 40, 40]


def test_a_batch_alone_is_no_number_of_tokens():
    assert graphs(Layer(), inputs(2, 5), inputs(3, 5)) == [None, None]


class Body(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Tensor) -> Any:
        return self.body(*args)


@pytest.mark.parametrize(
    "body",
    [
        lambda x, y: (x.relu(), y.relu()),
        lambda x, y: x.sum(1) + y.sum(1),
    ],
    ids=["results of their own", "sums"],
)
def test_two_numbers_of_tokens_are_none(body):
    calls = [(torch.randn(2, a, WIDTH), torch.randn(2, b, WIDTH)) for a, b in ((5, 9), (6, 11), (7, 13))]
    assert graphs(Body(body), *calls)[-1] is None


@pytest.mark.parametrize(
    "other",
    [lambda n: torch.randn(2, WIDTH, n), lambda n: torch.randn(n, 3), lambda n: torch.randn(2, 3, n, n), lambda n: torch.randn(n)],
    ids=["last", "first", "map", "vector"],
)
def test_a_size_that_other_axes_follow_is_none(other):
    calls = [(torch.randn(2, n, WIDTH), other(n)) for n in (5, 6, 7)]
    found = graphs(Body(lambda x, y: (x * y.sum(), x.shape[1] + y)), *calls)
    assert found[-1] is None or len(found[-1].tensors) == 1


def test_results_that_follow_in_another_way_are_unknown():
    calls = [(torch.randn(2, n, WIDTH),) for n in (5, 6, 7)]
    found = graphs(Body(lambda x: (x.relu(), x.flatten(1) + 1, x.mean(1), torch.cat([x, x], 1) * 2)), *calls)[-1]
    assert found is not None
    assert found.outputs == ((0, Affine(TOKENS), 0), (0, None), (0, 0), (0, None, 0))


# Arguments, sizes, descriptions

SIZES = TokenSizes(numbers=(0,), tensors=(1, 3), outputs=((0, Affine(TOKENS), 0),))


def arguments(batch: int, count: int) -> tuple:
    return count, torch.randn(batch, count, WIDTH), torch.ones(WIDTH, WIDTH), torch.ones(batch, count, dtype=torch.int64), batch


def test_the_number_of_tokens_of_a_call():
    assert SIZES.size(arguments(2, 17)) == 17


def test_arguments_of_another_size_keep_kinds_and_everything_else():
    given = arguments(2, 17)
    made = SIZES.at(given, 64)
    assert made[0] == 64
    assert (made[1].shape, made[3].shape, made[3].dtype) == ((2, 64, WIDTH), (2, 64), torch.int64)
    assert made[2] is given[2]
    assert made[4] == 2
    assert given[1].shape == (2, 17, WIDTH)


@pytest.mark.parametrize(("count", "size"), [(1, BUCKET), (BUCKET, BUCKET), (BUCKET + 1, 2 * BUCKET)])
def test_sizes_are_rounded_up_to_a_bucket(count, size):
    assert bucket(count) == size


def test_sizes_up_to_the_largest_are_one():
    others = [0, 1, 3, 4]
    pick = lambda count: [count, (2, count, WIDTH), (2, count), 2]  # noqa: E731
    freed = [SIZES.freed(pick(count), others, 64) for count in (1, 17, 64)]
    assert freed == [[_FREE, (2, _FREE, WIDTH), (2, _FREE), 2]] * 3
    assert SIZES.freed(pick(65), others, 64) == pick(65)
    assert SIZES.freed([2, (2, 2, WIDTH), (2, 2), 2], others, 64) == [_FREE, (2, _FREE, WIDTH), (2, _FREE), 2]


def test_a_captured_graph_is_described_as_the_largest_of_its_sizes():
    captured = capture(Layer().eval(), inputs(2, 64))
    described = TokenSizes((), (3, 5), ((2, Affine(TOKENS), WIDTH),)).described(captured, [3, 5], 64)
    assert [spec.dims for spec in described.inputs] == [(2, Affine(TOKENS), WIDTH), (2, Affine(TOKENS))]
    assert described.symbols == {TOKENS: SymbolSpec(TOKENS, 1, 64)}
    assert described.sizes == {TOKENS: 64}
    fixed = TokenSizes((), (3,), ()).described(captured, [3, 4], 64)
    assert fixed.inputs[1].dims == (2, 64)


# Entries with several freedoms


def entry(freed: Any = None) -> Entry:
    return Entry(lambda args: args, takes_inputs=True, freed=freed)


def shapes(batch: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(batch, count, WIDTH), torch.zeros(batch, count)


@pytest.fixture
def table():
    """One weight, tokens and a mask; programs of one bucket and of two."""
    made, weight = Table(3, [0]), torch.ones(4)
    tokens = TokenSizes((), (1, 2), ())
    small, large = (lambda sizes, most=most: free_batch(tokens.freed(sizes, [1, 2], most)) for most in (64, 128))
    found = SimpleNamespace(table=made, weight=weight, small=small, large=large)
    made_of = Fingerprint([weight], "versions")
    found.add = lambda entry, *sizes: made.add(entry, (found.weight, *shapes(*sizes)), made_of)
    return found


def test_an_entry_serves_all_sizes_of_its_bucket_and_any_batch(table):
    mine = entry(table.small)
    table.add(mine, 2, 17)
    for batch, count in ((2, 17), (5, 64), (1, 1), (3, 3)):
        assert table.table.find((table.weight, *shapes(batch, count))) == (mine, False)
        assert table.table.match((table.weight,), shapes(batch, count)) is mine
    for batch, count in ((2, 65), (2, 128)):
        assert table.table.find((table.weight, *shapes(batch, count))) == (None, False)
        assert table.table.match((table.weight,), shapes(batch, count)) is None


def test_entries_of_several_freedoms_live_side_by_side(table):
    exact, batches, small, large = entry(), entry(free_batch), entry(table.small), entry(table.large)
    table.add(exact, 2, 300)
    table.add(batches, 2, 200)
    table.add(small, 2, 17)
    table.add(large, 2, 100)
    for call, wanted in [((2, 300), exact), ((3, 300), None), ((7, 200), batches), ((7, 100), large), ((7, 128), large), ((7, 129), None)]:
        assert table.table.find((table.weight, *shapes(*call)))[0] is wanted, call
    assert table.table.find((table.weight, *shapes(7, 17)))[0] in (small, large)


def test_a_written_weight_drops_the_entry_at_every_size(table):
    table.add(entry(table.small), 2, 17)
    table.weight.add_(1)
    assert table.table.match((table.weight,), shapes(2, 9)) is None
    assert table.table.find((table.weight, *shapes(2, 9))) == (None, True)
    assert table.table.find((table.weight, *shapes(2, 17))) == (None, False)


def test_a_dead_weight_takes_its_entries_with_it(table):
    table.add(entry(table.small), 2, 17)
    table.add(entry(table.large), 2, 100)
    table.weight = None
    assert not table.table.entries


# The door, with a stand-in for the compiler


class Sized(StandIn):
    """Its programs take any number of tokens up to what they were captured with; ``refuse`` leaves sizes fixed."""

    refuse = False
    unsupported = False

    def compile_graph(self, captured, settings, rest=True):
        if captured.symbols and self.unsupported:
            raise UnsupportedModel("No such sizes.")
        baked = super().compile_graph(captured, settings, rest)
        baked.any_batch = True
        takes = captured.symbols and not self.refuse
        baked.programs = [SimpleNamespace(program=SimpleNamespace(sizes=("tokens",) if takes else ()))]
        self.sizes = [*getattr(self, "sizes", []), dict(captured.sizes)]
        return baked


@pytest.fixture
def sized(driver, monkeypatch):
    """`driver` with programs that take sizes."""
    import sys

    made = Sized()
    monkeypatch.setattr(sys.modules["sparsec.driver"], "compile_graph", made.compile_graph)
    return made


class PerToken(nn.Module):
    """What is computed for one token does not depend on how many there are: a graph baked at 64 tokens serves 5 as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


def check(fast: Any, model: nn.Module, batch: int, count: int) -> None:
    x = torch.randn(batch, count, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


def test_one_program_is_made_for_all_sizes_of_a_bucket(sized):
    model = PerToken().eval()
    fast = compiled(model)
    for batch, count in ((2, 5), (2, 6), (3, 7), (4, 64), (2, 33)):
        check(fast, model, batch, count)
    assert [size for size in sized.sizes if size] == [{TOKENS: 64}] * (len(sized.sizes) - 1)
    before = sized.count
    for batch, count in ((5, 12), (2, 64), (9, 2)):
        check(fast, model, batch, count)
    assert sized.count == before
    check(fast, model, 2, 65)
    assert sized.count == before + 1
    assert sized.sizes[-1] == {TOKENS: 128}
    for count in (100, 128, 30, 65):
        check(fast, model, 2, count)
    assert sized.count == before + 1


def test_written_weights_are_noticed_at_every_size(sized):
    model = PerToken().eval()
    fast = compiled(model)
    for count in (5, 6, 20):
        check(fast, model, 2, count)
    with torch.no_grad():
        model.linear.weight.mul_(2)
    for count in (5, 6, 20, 7):
        check(fast, model, 2, count)


@pytest.mark.parametrize("how", ["unsupported", pytest.param("refuse", marks=pytest.mark.slow)])
def test_sizes_that_no_program_takes_are_compiled_one_by_one(sized, how, caplog):
    setattr(sized, how, True)
    model = PerToken().eval()
    fast = compiled(model)
    for count in (5, 6, 7, 6, 7):
        check(fast, model, 2, count)
    free = [size for size in sized.sizes if size]
    assert len(free) <= 1
    assert sized.count - len(free) == 3
    assert not warnings_in(caplog)
