"""What users get wrong: a clear error or the right answer, never a crash or a silently wrong one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsec
from sparsec.backends.x86 import machine as x86_machine
from sparsec.backends.x86.machine import _AVX2, describe
from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.errors import InvalidInput, MachineError, UnsupportedModel
from sparsec.run.processor import flags

IMAGES = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def warned(monkeypatch, caplog):
    """Each warning is said again in each test; calling it gives the messages."""
    monkeypatch.setattr(torch_backend, "_said", set())
    monkeypatch.setenv("SPARSEC_STRICT", "1")
    torch._dynamo.reset()
    return lambda: [record.getMessage() for record in caplog.records if record.name == "sparsec"]


class Net(nn.Module):
    """One region: a stem, a 1x1 convolution with zeros, a classifier."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.point, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)
        with torch.no_grad():
            self.point.weight.mul_(torch.rand(16, 8, 1, 1) < 0.2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.point(F.relu(self.stem(x))))
        return self.last(y.mean((2, 3)))


def made(model: nn.Module, cache, *inputs: Tensor, **kwargs: Tensor):
    return sparsec.compile(model.eval(), inputs or (IMAGES,), kwargs, threads=1, cache_dir=cache)


def same(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def agrees(compiled, model: nn.Module, *inputs: Tensor, **kwargs: Tensor) -> None:
    with torch.no_grad():
        same(compiled(*inputs, **kwargs), model(*inputs, **kwargs))


# Inputs


@pytest.mark.parametrize(
    "given",
    [
        IMAGES[:, :2],
        IMAGES[:, :, :5],
        IMAGES[0],
        IMAGES.double(),
        IMAGES.half(),
        IMAGES.to(torch.int64),
        IMAGES.to("meta"),
        IMAGES.to_sparse(),
        torch.zeros(()),
        IMAGES.numpy().astype(np.float64),
    ],
    ids=["channels", "height", "no batch", "double", "half", "integers", "device", "sparse", "scalar", "numpy double"],
)
def test_inputs_that_do_not_fit_are_refused_by_name(cache, given):
    compiled = made(Net(), cache)
    with pytest.raises(InvalidInput, match="Input 'x' does not fit") as raised:
        compiled(given)
    assert "Compiled for [batch, 3, 6, 5] torch.float32" in str(raised.value)


@pytest.mark.parametrize("given", [(), (IMAGES, IMAGES), ([IMAGES],), (3.0,), (None,)], ids=["none", "two", "list", "number", "None"])
def test_other_arguments_than_compiled_for_are_refused(cache, given):
    with pytest.raises(InvalidInput):
        made(Net(), cache)(*given)


def test_strange_memory_gives_the_right_answer(cache):
    model = Net()
    compiled = made(model, cache)
    raw = torch.randn(2 * 3 * 6 * 5 + 1)
    agrees(compiled, model, raw[1:].view(2, 3, 6, 5))
    agrees(compiled, model, IMAGES.to(memory_format=torch.channels_last))
    agrees(compiled, model, IMAGES.flip(0).transpose(2, 3).contiguous().transpose(2, 3))
    agrees(compiled, model, IMAGES[:1].expand(4, 3, 6, 5))
    agrees(compiled, model, torch.complex(IMAGES, IMAGES).conj().imag)
    agrees(compiled, model, IMAGES.clone().requires_grad_())
    array = IMAGES.numpy().copy()
    array.flags.writeable = False
    for given in (array, array[::-1], array.astype(array.dtype, order="F")):
        agrees(compiled, model, torch.from_numpy(given.copy()))
        same(torch.from_numpy(compiled(given)), compiled(torch.from_numpy(given.copy())))


def test_no_images_give_no_results(cache):
    compiled = made(Net(), cache)
    assert compiled(IMAGES[:0]).shape == (0, 5)
    assert compiled(IMAGES[:0].numpy()).shape == (0, 5)


@pytest.mark.parametrize("shape", [(0, 3, 6, 5), (2, 0, 6, 5), (2, 3, 0, 5)])
def test_examples_with_an_empty_axis_are_refused(cache, shape):
    with pytest.raises(InvalidInput, match="empty axes"):
        made(nn.ReLU(), cache, torch.zeros(shape))


class Empty(nn.Module):
    """Computes with a value of zero channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:, 3:].relu()], 1).relu()


def test_an_empty_channel_inside_a_model_stays_dense(cache):
    agrees(made(Empty(), cache), Empty(), IMAGES)


def test_examples_elsewhere_or_missing_are_refused():
    with pytest.raises(InvalidInput, match="on meta"):
        sparsec.compile(Net(), (IMAGES.to("meta"),))
    with pytest.raises(InvalidInput, match="missing"):
        sparsec.compile(Net())


@pytest.mark.parametrize("model", [None, lambda x: x, "model.pt"], ids=["None", "function", "path"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(UnsupportedModel, match="is no model"):
        sparsec.compile(model, (IMAGES,))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(UnsupportedModel, match="training mode"):
        sparsec.compile(Net().train(), (IMAGES,))


def test_double_models_are_right(cache):
    model = Net().double()
    agrees(made(model, cache, IMAGES.double()), model, IMAGES.double())


# Weights


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.slow
def test_odd_weights_are_named_and_give_what_eager_gives(cache, odd):
    model = Net()
    with torch.no_grad():
        model.last.weight[2, 3] = odd
    compiled = made(model, cache)
    agrees(compiled, model, IMAGES)
    (reason,) = compiled._compiled.reasons
    assert "last" in reason
    assert "infinite or NaN" in reason


def test_the_torch_door_warns_of_odd_weights(warned):
    model = Net()
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = float("nan")
        agrees(torch.compile(model, backend="sparse"), model, IMAGES)
    assert any("infinite or NaN" in message for message in warned())


@pytest.mark.parametrize("zeros", ["all", "rows", "none"])
def test_empty_rows_and_matrices_are_right(cache, zeros):
    model = Net()
    with torch.no_grad():
        if zeros == "all":
            model.stem.weight.zero_(), model.point.weight.zero_(), model.last.weight.zero_()
        elif zeros == "rows":
            model.point.weight[::2] = 0
        else:
            model.point.weight.fill_(0.25)
    agrees(made(model, cache), model, IMAGES)


# Machines and places


@pytest.mark.parametrize("missing", [{"avx2"}, {"fma"}, set(_AVX2)], ids=["avx2", "fma", "all"])
def test_a_machine_without_avx2_is_refused_by_name(missing):
    with pytest.raises(MachineError, match="AVX2 and FMA") as raised:
        describe(flags() - missing, 1)
    assert all(name in str(raised.value) for name in missing)


@pytest.fixture
def old_machine(monkeypatch):
    """A processor that has everything but AVX2."""
    monkeypatch.setattr(x86_machine, "machine", lambda cpu: describe(flags() - {"avx2"}, 1))


def test_without_avx2_compile_says_so(old_machine, cache):
    with pytest.raises(MachineError, match="without avx2"):
        made(Net(), cache)


def test_without_avx2_the_torch_door_falls_back_with_a_warning(old_machine, warned):
    model = Net()
    with torch.no_grad():
        agrees(torch.compile(model, backend="sparse"), model, IMAGES)
    assert any("Compiled dense" in message and "avx2" in message for message in warned())


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
@pytest.mark.slow
def test_an_unwritable_cache_directory_does_not_matter(tmp_path, place):
    (tmp_path / "file").write_text("")
    model = nn.Conv2d(3, 4, 1)
    agrees(made(model, tmp_path / place), model, IMAGES)


def test_settings_out_of_range_are_refused():
    for options in ({"threads": 0}, {"threads": 1.5}, {"tune": "hard"}, {"thread": 2}):
        with pytest.raises(InvalidInput):
            sparsec.compile(Net(), (IMAGES,), **options)


# Several at once


def test_two_threads_may_call_one_model_at_once(cache):
    model = Net()
    compiled = made(model, cache)
    inputs = [torch.randn(n % 3 + 1, 3, 6, 5) for n in range(40)]
    start = threading.Barrier(2)

    def work(mine: list[Tensor]) -> list[Tensor]:
        start.wait()
        return [compiled(x) for x in mine]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, [inputs[:20], inputs[20:]]))
    with torch.no_grad():
        for x, y in zip(inputs, results[0] + results[1], strict=True):
            same(y, model(x))


def test_several_models_live_side_by_side(cache):
    models = [Net(seed) for seed in range(3)]
    compiled = [made(model, cache) for model in models]
    for _ in range(2):
        for fast, model in zip(compiled, models, strict=True):
            agrees(fast, model, IMAGES)


def test_two_threads_may_compile_at_once(cache):
    models = [Net(3), Net(4)]
    with ThreadPoolExecutor(2) as pool:
        for fast, model in zip(pool.map(lambda m: made(m, cache), models), models, strict=True):
            agrees(fast, model, IMAGES)


# Signatures


class Odd(nn.Module):
    """A model whose forward is a function of its convolution and the inputs."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(3, 3, 1), function
        self.register_buffer("fixed", torch.arange(3.0))

    def forward(self, x: Tensor, y: Tensor | None = None):
        return self.function(self, x, y)


SIGNATURES = {
    "an input unchanged": lambda m, x, y: (m.conv(x), x),
    "the same tensor twice": lambda m, x, y: [(z := m.conv(x)), z],
    "a constant": lambda m, x, y: (m.conv(x), m.fixed),
    "a constant alone": lambda m, x, y: m.fixed * 1.0,
    "an inner value and the end": lambda m, x, y: ((z := m.conv(x)), F.relu(z).mean((2, 3))),
    "outputs out of order": lambda m, x, y: (F.relu(z := m.conv(x)), z),
    "a dictionary": lambda m, x, y: {"b": m.conv(x), "a": {"deep": F.relu(x)}},
    "numbers and None": lambda m, x, y: (m.conv(x), None, 3),
    "a view of the result": lambda m, x, y: m.conv(x).flatten(1),
    "nothing computed": lambda m, x, y: x,
}


@pytest.mark.slow
@pytest.mark.parametrize("returned", SIGNATURES)
@pytest.mark.turns(3)
def test_results_come_in_the_model_s_own_structure(cache, returned):
    model = Odd(SIGNATURES[returned]).eval()
    compiled = made(model, cache)
    for x in (IMAGES, IMAGES * 3):
        with torch.no_grad():
            expected, found = model(x), compiled(x)
        same(found, expected)


TWO = {
    "both": lambda m, x, y: m.conv(x) + y,
    "the second first": lambda m, x, y: m.conv(y) * x,
    "only the second": lambda m, x, y: m.conv(y),
    "none": lambda m, x, y: m.fixed.sum(),
}


@pytest.mark.slow
@pytest.mark.parametrize("used", TWO)
def test_two_inputs_in_any_order_by_position_and_name(cache, used):
    model = Odd(TWO[used]).eval()
    other = IMAGES.flip(1).contiguous()
    agrees(made(model, cache, IMAGES, other), model, IMAGES, other)
    compiled = made(model, cache, IMAGES, y=other)
    agrees(compiled, model, IMAGES, y=other)
    with pytest.raises(InvalidInput):
        compiled(IMAGES, z=other)


@pytest.mark.slow
def test_batches_of_two_inputs_must_agree(cache):
    compiled = made(Odd(TWO["both"]), cache, IMAGES, IMAGES)
    with pytest.raises(InvalidInput, match=r"different batch sizes: \[1, 2\]"):
        compiled(IMAGES, IMAGES[:1])
