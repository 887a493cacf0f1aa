"""Operators that may draw random numbers: refused where they do, for every operator that has a switch or a rate."""

import inspect

import pytest
import torch
from torch import Tensor, fx, nn

import sparsec
from sparsec.doors.from_torch.capture import capture
from sparsec.doors.from_torch.randomness import _DROPOUTS, _OPERATORS, is_random
from sparsec.errors import UnsupportedModel
from sparsec.lower import inductor

aten = torch.ops.aten
TOKENS = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2))
#: name of the operator → arguments with which it draws nothing, and with which it may.
OFF = {
    "dropout": [{"p": 0.5, "train": False}, {"p": 0.0, "train": True}],
    "native_dropout": [{"p": 0.5, "train": False}, {"p": 0.0, "train": None}],
    "lstm.input": [{"dropout": 0.5, "train": False}, {"dropout": 0.0, "train": True}],
    "gru.data": [{"dropout": 0.5, "train": False}, {"dropout": 0.0, "train": True}],
    "rnn_tanh.input": [{"dropout": 0.5, "train": False}],
    "scaled_dot_product_attention": [{}, {"dropout_p": 0.0}],
    "_scaled_dot_product_flash_attention_for_cpu": [{}],
    "rrelu": [{}, {"training": False}],
}
ON = {
    "dropout": [{"p": 0.5, "train": True}],
    "native_dropout": [{"p": 0.5, "train": None}],
    "lstm.input": [{"dropout": 0.5, "train": True}],
    "scaled_dot_product_attention": [{"dropout_p": 0.1}],
    "rrelu": [{"training": True}],
    "bernoulli.p": [{"p": 0.0}, {"p": 0.5}],
    "rand": [{}],
    "randn_like": [{}],
    "normal.float_float": [{"std": 0.0}],
    "multinomial": [{}],
}


def overload(name: str):
    packet, _, which = name.partition(".")
    return getattr(getattr(aten, packet), which or "default")


def node_of(target, given) -> fx.Node:
    """A call with the first arguments by position, the given ones as the schema has them."""
    graph = fx.Graph()
    names = [argument.name for argument in target._schema.arguments if not argument.kwarg_only]
    last = max((names.index(name) for name in given if name in names), default=-1)
    defaults = {a.name: a.default_value for a in target._schema.arguments}
    args = tuple(given.get(name, defaults[name]) for name in names[: last + 1])
    return graph.call_function(target, args, {name: value for name, value in given.items() if name not in names})


@pytest.mark.parametrize("name", OFF)
def test_switched_off(name):
    for given in OFF[name]:
        assert not is_random(node_of(overload(name), given)), given


@pytest.mark.parametrize("name", ON)
def test_switched_on(name):
    for given in ON[name]:
        assert is_random(node_of(overload(name), given)), given


def seeded():
    """Every operator of torch that may draw."""
    for full in torch._C._dispatch_get_all_op_names():
        space, _, name = full.partition("::")
        if space == "aten":
            target = overload(name)
            if torch.Tag.nondeterministic_seeded in target.tags:
                yield target


def test_every_operator_draws_unless_it_says_otherwise():
    """With a rate of one half and a switch that is on, and with the switch off where there is one."""
    values = {"dropout": 0.5, "dropout_p": 0.5, "p": 0.5, "train": True, "training": True}
    for target in seeded():
        names = {argument.name for argument in target._schema.arguments}
        on = {name: value for name, value in values.items() if name in names}
        assert is_random(node_of(target, on)), target
        for switch in {"train", "training"} & names:
            assert not is_random(node_of(target, on | {switch: False})), target


class Recurrent(nn.Module):
    """Two pruned layers around a recurrent one."""

    def __init__(self, kind, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.recurrent = nn.Linear(16, 32), kind(32, 12, batch_first=True, **options)
        self.after = nn.Linear(24 if options.get("bidirectional") else 12, 8)
        with torch.no_grad():
            for layer in (self.before, self.after):
                layer.weight[torch.rand(layer.weight.shape) < 0.9] = 0

    def forward(self, x: Tensor):
        y, state = self.recurrent(self.before(x).relu())
        return self.after(y), state


KINDS = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2, dropout=0.3, bidirectional=True),
    "rnn": lambda: Recurrent(nn.RNN),
    "stacked": lambda: Recurrent(nn.LSTM, num_layers=2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_recurrent_layers_stay_dense_and_the_rest_does_not(kind, kernels, monkeypatch):
    monkeypatch.setattr(inductor, "compile_dense", lambda graph_module, examples, **_: graph_module)
    model = KINDS[kind]().eval()
    fast = sparsec.compile(model, (TOKENS,), threads=1, cache_dir=kernels)
    with torch.no_grad():
        torch.testing.assert_close(fast(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-5)
    assert len(fast._compiled.programs) == 2
    assert any("not an operator with one tensor result" in reason for _, reason in fast.explain().uncovered)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_through_torch_compile(kind, strict, kernels, caplog):
    model = KINDS[kind]().eval()
    fast = torch.compile(model, backend="sparse", options={"cache_dir": kernels})
    with torch.no_grad():
        for batch in (2, 3):
            x = torch.randn(batch, 7, 16)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert not [record for record in caplog.records if record.name == "sparsec"]


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_models_that_draw_are_refused():
    with pytest.raises(UnsupportedModel, match="draws random numbers"):
        capture(Drawing().eval(), (TOKENS,))


def test_attention_modules_that_are_off():
    for module in (nn.MultiheadAttention(16, 4, dropout=0.5, batch_first=True), nn.TransformerEncoderLayer(16, 4, 8, dropout=0.5)):
        args = (TOKENS,) * (3 if isinstance(module, nn.MultiheadAttention) else 1)
        model = module.eval()
        captured = capture(model, args)
        inputs = captured.flatten(args)
        with torch.no_grad():
            found = captured.restore(captured.graph_module(*inputs), inputs)
            torch.testing.assert_close(found, model(*args), rtol=1e-4, atol=1e-5)


def test_every_dropout_of_torch_is_known():
    named = {getattr(nn.functional, name) for name in dir(nn.functional) if "dropout" in name and not name.startswith("_")}
    assert {function for function in named if inspect.isfunction(function)} == _DROPOUTS
    operators = {name for name in dir(torch) if name.endswith("dropout") and not name.startswith("_")} - {"native_dropout"}
    assert {getattr(torch, name) for name in operators} == _OPERATORS
