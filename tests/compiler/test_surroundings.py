"""What is on around a call, or around compiling: default devices and dtypes, modes that look at operators, wrapped and missing memory."""

import gc
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

import sparsec
from sparsec.errors import InvalidInput, UnsupportedModel
from tests.fuzz.prelude import seeded

AUTO = {0: Dim.AUTO, 1: Dim.AUTO}
SHAPE, FURTHER = (2, 8, 32), (2, 5, 32)


class Whole(nn.Module):
    """One region."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Parts(Whole):
    """Torch runs what is between regions, with constants of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", torch.randn(32, 32))

    def forward(self, x):
        return self.second(torch.cumsum(self.first(x).relu() @ self.mix, 1)) @ self.mix @ self.first.weight


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "nothing": nullcontext,
    "default device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu"),
    "counts": lambda: FlopCounterMode(display=False),
    "deterministic": deterministic,
}
KINDS = [Whole, pytest.param(Parts, marks=pytest.mark.slow)]


def made(kind, kernels, **options):
    model = seeded(kind(), "90%", 1)
    return model, sparsec.compile(model, (torch.randn(SHAPE),), threads=1, cache_dir=kernels, **options)


def same(found, wanted):
    assert type(found) is torch.Tensor and found.dtype == torch.float32 and found.device.type == "cpu"
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"dynamic_shapes": (AUTO,)}], ids=["fixed", "free"])
def test_objects(strict, kernels, kind, options):
    """The first call of a size, which compiles where it is a further one, and later calls without anything around."""
    model, fast = made(kind, kernels, **options)
    for number, around in enumerate(SURROUNDINGS.values()):
        x = torch.randn(2, 3 + number, 32) if options else torch.randn(SHAPE)
        wanted = model(x)
        for surroundings in (around, nullcontext):
            with surroundings():
                found = fast(x)
            same(found, wanted)
            assert not (found.is_inference() and surroundings is nullcontext)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*global hooks:UserWarning")
def test_later_calls_of_torch_compile(strict, kernels, kind):
    model, x = seeded(kind(), "90%", 1), torch.randn(SHAPE)
    fast = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})
    with torch.no_grad():
        same(fast(x), model(x))
        for name in SURROUNDINGS.keys() - {"autocast"}:
            for around in (SURROUNDINGS[name], nullcontext):
                with around():
                    same(fast(x).detach(), model(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*global hooks:UserWarning")
@pytest.mark.parametrize("kind", [Whole, Parts])
@pytest.mark.parametrize("name", sorted(SURROUNDINGS.keys() - {"autocast"}))
@pytest.mark.turns(5)
def test_first_calls_of_torch_compile(strict, kernels, kind, name):
    model, x = seeded(kind(), "90%", 1), torch.randn(SHAPE)
    fast = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})
    with torch.no_grad():
        for around in (SURROUNDINGS[name], nullcontext):
            with around():
                same(fast(x).detach(), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_without_memory(strict, kernels, kind):
    """As eager mode gives them; or refused by torch."""
    model, fast = made(kind, kernels)
    through = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})
    x = torch.randn(SHAPE)
    with torch.no_grad():
        through(x)
        for call in (fast, through):
            with FakeTensorMode(allow_non_fake_inputs=True):
                found = call(x)
            assert isinstance(found, FakeTensor) and found.shape == SHAPE
            with FakeTensorMode(), pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
                call(x)
            same(call(x), model(x))


class Named(torch.Tensor):
    """A subclass as users write them."""


@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_tensors(strict, kernels, kind):
    model, fast = made(kind, kernels)
    through = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})
    a, b, zeros = torch.randn(SHAPE), torch.randn(SHAPE), torch._efficientzerotensor(SHAPE)
    with torch.no_grad():
        for call in (fast, through):
            found = call(TwoTensor(a, b))
            same(found.a, model(a))
            same(found.b, model(b))
            found = call(a.as_subclass(Named))
            assert type(found) is Named
            same(found.as_subclass(torch.Tensor), model(a))
            same(call(nn.Parameter(a)), model(a))
            same(call(zeros), model(zeros))


@pytest.mark.parametrize("kind", KINDS)
def test_released_memory_is_refused(strict, kernels, kind):
    _, fast = made(kind, kernels)
    x = torch.randn(SHAPE)
    x.untyped_storage().resize_(0)
    with pytest.raises((InvalidInput, RuntimeError), match=r"no memory|storage"):
        fast(x)


@pytest.mark.parametrize("kind", KINDS)
def test_traces_hold_an_object_as_one_operator(strict, kernels, kind):
    model, fast = made(kind, kernels)
    kept = [fast]

    class Around(nn.Module):
        def forward(self, x):
            return kept[0](x * 2) + 1

    x, other = torch.randn(SHAPE), torch.randn(SHAPE)
    traced = make_fx(Around())(x)
    exported = torch.export.export(Around().eval(), (x,)).module()
    for graph in (traced, exported):
        same(graph(other), model(other * 2) + 1)
    del fast
    kept.clear()
    with pytest.raises(InvalidInput, match="which is gone"):
        traced(other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Whole, Parts])
@pytest.mark.parametrize("name", sorted(SURROUNDINGS.keys() - {"autocast"}))
@pytest.mark.turns(5)
def test_compiling(strict, kernels, kind, name):
    """What is on while an object is made is no part of it either."""
    model, x = seeded(kind(), "90%", 1), torch.randn(SHAPE)
    with SURROUNDINGS[name]():
        fast = sparsec.compile(model, (x,), threads=1, cache_dir=kernels)
    same(fast(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"dynamic_shapes": (AUTO,)}], ids=["fixed", "free"])
def test_objects_keep_the_weights_of_their_making(strict, kernels, kind, options):
    """Those of kernels, those that torch uses, those that further sizes are made of; of a program given as such too."""
    model, fast = made(kind, kernels, **options)
    program = torch.export.export(model, (torch.randn(SHAPE),), dynamic_shapes=options.get("dynamic_shapes"))
    second = sparsec.compile(program, threads=1, cache_dir=kernels)
    inputs = [torch.randn(SHAPE), torch.randn(FURTHER)][: 1 + len(options)]
    wanted = [model(x) for x in inputs]
    model.load_state_dict(seeded(kind(), "90%", 2).state_dict())
    assert program.state_dict["first.weight"].data_ptr() == model.first.weight.data_ptr()
    for x, value in zip(inputs, wanted, strict=True):
        same(fast(x), value)
        same(second(x), value)


class Written(Whole):
    """Traced twice, and run, to see what eager mode writes to."""

    def forward(self, x):
        y = self.first(x)
        y.flatten(1).mul_(2)
        return self.second(y).contiguous().view(len(x), -1)


class Strided(Whole):
    """Asks for strides."""

    def forward(self, x):
        return self.second(self.first(x) * x.stride(0))


@pytest.mark.parametrize("kind", [Whole, Parts, Written, Strided])
@pytest.mark.parametrize("options", [{}, {"dynamic_shapes": (AUTO,)}], ids=["fixed", "free"])
def test_objects_do_not_hold_on_to_tensors_of_the_model(strict, kernels, kind, options):
    """torch swaps none that has a weak reference. No collection of garbage has to come first."""
    x = torch.randn(SHAPE)
    gc.collect()
    gc.disable()
    try:
        model, fast = made(kind, kernels, **options)
        with torch.no_grad():
            wanted = model(x)
        for name in ("first.weight", "first.bias", "second.weight"):
            p = model.get_parameter(name)
            torch.utils.swap_tensors(p, nn.Parameter(torch.randn_like(p)))
    finally:
        gc.enable()
    same(fast(x), wanted)


class Numbered(Whole):
    """Makes values where the default device is."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(16, 32)

    def forward(self, x):
        return super().forward(x + self.places(torch.arange(x.shape[1])))


class Elsewhere(Whole):
    """Makes values on another device, whatever is the default."""

    def forward(self, x):
        return super().forward(x) + torch.zeros(32, device="meta")


@pytest.mark.parametrize("make", [Numbered, Elsewhere])
def test_what_is_made_on_another_device_becomes_no_constant(strict, without_inductor, kernels, make):
    """It was folded into whatever its memory held. There eager mode raises, or reads such memory itself; later calls are right."""
    model, x = seeded(make(), "90%", 0), torch.randn(*SHAPE)
    fast = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})
    with torch.device("meta"), torch.no_grad():
        outcome(lambda: fast(x))
    assert not sparsec.explain(fast).layers
    wanted, found = outcome(lambda: model(x)), outcome(lambda: fast(x))
    assert (found is None) == (wanted is None)
    if wanted is not None:
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert sparsec.explain(fast).layers


def outcome(call):
    """None where it raises."""
    try:
        with torch.no_grad():
            return call()
    except Exception:
        return None


def test_an_object_with_values_on_another_device_is_refused():
    with pytest.raises(UnsupportedModel, match=r"on the device meta|found at least two devices"):
        sparsec.compile(seeded(Elsewhere(), "90%", 0), (torch.randn(*SHAPE),), threads=1)
