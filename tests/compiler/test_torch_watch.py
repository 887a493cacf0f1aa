"""The one guard that stands for Dynamo's: whatever they would notice, it notices."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.doors.torch_compile import dynamo_guards as torch_guards
from sparsec.doors.torch_compile import stamps as torch_memory
from sparsec.doors.torch_compile import watch as torch_watch
from tests.compiler.stand_in import Small, agrees, compiled, images

pytestmark = pytest.mark.usefixtures("driver")
stamped = pytest.mark.skipif(not torch_memory.can_read(), reason="dictionaries of this interpreter have no stamps: Dynamo keeps its guards")


@pytest.fixture
def watches(monkeypatch) -> list:
    """What ``watch`` returned for each graph that came through the door."""
    made: list = []

    def record(*args):
        made.append(torch_guards.watch(*args))
        return made[-1]

    monkeypatch.setattr(torch_backend, "watch", record)
    torch_watch.unsteady.clear()
    return made


class Square(nn.Module):
    """A linear layer whose transpose has the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale, self.steps = 2.0, (1, 2)

    def forward(self, x):
        return self.layer(x) * self.scale + self.steps[1]


def vectors() -> torch.Tensor:
    return torch.randn(3, 6)


def transpose_data(model):
    model.layer.weight.data = model.layer.weight.data.t()


def set_attribute(model):
    model.scale = 3.0


def set_tuple(model):
    model.steps = (1, 5)


def write_the_dictionary(model):
    model.__dict__["scale"] = 4.0


def replace_a_module(model):
    model.layer = nn.Linear(6, 6)


def replace_by_another_class(model):
    model.layer = nn.Sequential(nn.Linear(6, 6), nn.ReLU())


def drop_the_bias(model):
    model.layer.bias = None


def add_a_hook(model):
    model.layer.register_forward_hook(lambda module, args, result: result + 1)


def add_a_hook_before(model):
    model.layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def override_forward(model):
    model.layer.forward = lambda x: F.linear(x, model.layer.weight)


CHANGES = [transpose_data, set_attribute, drop_the_bias]
MORE_CHANGES = [set_tuple, write_the_dictionary, replace_a_module, replace_by_another_class, override_forward]
# Dynamo's own guards do not look at hooks, unless its skip_nnmodule_hook_guards is off.
HOOKS = [pytest.param(add_a_hook, marks=stamped), pytest.param(add_a_hook_before, marks=[stamped, pytest.mark.slow])]


@pytest.mark.parametrize(
    "change",
    [*CHANGES, *(pytest.param(change, marks=pytest.mark.slow) for change in MORE_CHANGES), *HOOKS],
    ids=lambda change: change.__name__,
)
def test_every_change_is_noticed(watches, change):
    model, x = Square().eval(), vectors()
    fast = compiled(model)
    agrees(fast, model, x)
    assert (watches[0] is not None) == torch_memory.can_read()
    change(model)
    for _ in range(2):
        agrees(fast, model, x)


@pytest.mark.slow
def test_training_mode_is_noticed(watches):
    model, x = Small().eval(), images()
    fast = compiled(model)
    agrees(fast, model, x)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        got = fast(x)
        model.load_state_dict(state)
        torch.testing.assert_close(got, model(x))
    model.eval()
    agrees(fast, model, x)


@stamped
def test_the_graph_gets_no_weights_and_few_guards_stay(watches, monkeypatch):
    taken: list[int] = []
    call = torch_backend.Door.__call__
    monkeypatch.setattr(torch_backend.Door, "__call__", lambda door, *args: (taken.append(len(args)), call(door, *args))[1])
    model = Small().eval()
    agrees(compiled(model), model, images())
    assert taken == [1]


@stamped
def test_memory_that_a_weight_no_longer_has_is_let_go_and_the_new_is_followed():
    model = Square().eval()
    weight = model.layer.weight
    snapshot = torch_watch.Snapshot(model, (weight,), [vars(model)], lambda _: None)
    old = weakref.ref(weight.untyped_storage())
    weight.data = torch.randn(6, 6)
    found = object
    snapshot.entry = lambda: found
    assert snapshot.holds()
    assert snapshot.entry() is None
    gc.collect()
    assert old() is None
    snapshot.entry = lambda: found
    assert snapshot.holds()
    assert snapshot.entry() is found
    with torch.no_grad():
        weight.mul_(2)
    assert snapshot.holds()
    assert snapshot.entry() is None


def test_many_instances_share_one_compiled_frame(watches):
    models, x = [Small().eval() for _ in range(12)], images()
    fasts = [torch.compile(model, backend="sparse") for model in models]
    for _ in range(2):
        for fast, model in zip(fasts, models, strict=True):
            agrees(fast, model, x)
    assert len(watches) == 1


@stamped
def test_a_module_that_changes_at_every_call_gets_the_usual_guards(watches, monkeypatch):
    monkeypatch.setattr(torch_watch, "_RESTLESS", 3)
    model, x = Square().eval(), vectors()
    fast = compiled(model)
    for step in range(8):
        model.note = step
        agrees(fast, model, x)
    assert [made is not None for made in watches] == [True, False]


class Config:
    def __init__(self) -> None:
        self.scale, self.sizes = 2.0, [3, 4]


class Configured(Square):
    """Reads an object and a list, which carry no versions."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.shifts = Config(), [1.0, 2.0]

    def forward(self, x):
        return super().forward(x) * self.config.scale + self.shifts[0] + self.config.sizes[1]


def test_what_lies_in_objects_and_lists_keeps_its_guards(watches):
    model, x = Configured().eval(), vectors()
    fast = compiled(model)
    agrees(fast, model, x)
    assert (watches[0] is not None) == torch_memory.can_read()
    model.config.scale = 5.0
    agrees(fast, model, x)
    model.shifts[0] = 7.0
    agrees(fast, model, x)
    model.config.sizes.append(9)
    model.config.sizes[1] = 8
    agrees(fast, model, x)


class Deep(nn.Module):
    """A weight of more axes than a tensor holds in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 1, 1, 1, 2, 6))

    def forward(self, x):
        return (x[:, None] * self.weight).sum(4).flatten(1)


def test_what_cannot_be_watched_keeps_its_guards(watches):
    model, x = Deep().eval(), vectors()
    fast = compiled(model)
    agrees(fast, model, x)
    assert watches == [None]
    model.weight = nn.Parameter(torch.randn(1, 1, 1, 1, 2, 6))
    agrees(fast, model, x)


@pytest.mark.slow
def test_a_function_that_calls_a_module_of_its_closure(watches):
    model, x = Square().eval(), vectors()
    fast = torch.compile(lambda y: model(y) + 1, backend="sparse")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x) + 1)
        model.scale = 7.0
        torch.testing.assert_close(fast(x), model(x) + 1)
        model = Square().eval()
        torch.testing.assert_close(fast(x), model(x) + 1)


def test_two_modules_in_one_graph_keep_their_guards(watches):
    first, second, x = Square().eval(), Square().eval(), vectors()
    fast = torch.compile(lambda y: first(y) + second(y), backend="sparse")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), first(x) + second(x))
        second.scale = 7.0
        torch.testing.assert_close(fast(x), first(x) + second(x))
    assert watches[0] is None


def test_nothing_is_watched_where_gradients_may_be_asked_for(watches):
    model, x = Square().eval().requires_grad_(False), vectors()
    fast = compiled(model)
    torch.testing.assert_close(fast(x), model(x))
    assert watches == [None]


def test_threads_with_an_instance_each(watches):
    models, x = [Square().eval() for _ in range(4)], vectors()
    fasts = [compiled(model) for model in models]
    for fast, model in zip(fasts, models, strict=True):
        agrees(fast, model, x)
    failures: list[BaseException] = []

    def work(fast, model):
        try:
            for _ in range(200):
                agrees(fast, model, x)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(fasts, models, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
