"""Objects borrow the model's weights while they are compiled: later writes are not seen, writes meanwhile make no mixture."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import sparsec
from sparsec import driver
from sparsec.autotune.export import export_kernels
from sparsec.backends.cpu.backend import Cpu
from sparsec.doors.borrowed import Borrowed, can_be_borrowed
from sparsec.doors.from_torch import capture as capture_module
from sparsec.ir import pipeline
from sparsec.ir.arrays import array_of
from sparsec.run.constants import Gathering
from tests.compiler import weight_writes

X = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))


class Softmaxed(nn.Module):
    """Layers with something between that no kernel computes, and a buffer that torch reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 8)
        self.register_buffer("scale", torch.rand(32) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cumsum(self.first(x), -1).softmax(-1) * self.scale)


def sparse(model: nn.Module) -> nn.Module:
    """With zeros that are worth it."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(torch.rand(p.shape, generator=generator) < 0.2)
    return model.eval()


def one_region() -> nn.Module:
    torch.manual_seed(0)
    return sparse(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)))


def with_torch() -> nn.Module:
    torch.manual_seed(0)
    return sparse(Softmaxed())


def answers(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def compiled(kernels: Any) -> Callable[..., Any]:
    """Compiles on one thread, with kernels of the session's cache."""

    def make(model: Any, x: Any = X, **options: Any) -> Any:
        return sparsec.compile(model, (x,), threads=1, cache_dir=kernels, **options)

    return make


def state_loaded(model: nn.Module) -> None:
    model.load_state_dict(weight_writes.another(model).state_dict())


def swapped(model: nn.Module) -> None:
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            torch.utils.swap_tensors(getattr(module, name), nn.Parameter(p.detach() * 1.5))


def copied_over(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p * 1.5)


def through_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.mul_(1.5)


def through_numpy(model: nn.Module) -> None:
    for p in model.parameters():
        array = p.detach().numpy()
        array *= 1.5


def storages_given_back(model: nn.Module) -> None:
    for p in model.parameters():
        p.untyped_storage().resize_(0)


WRITES = (copied_over, through_data, through_numpy, state_loaded, swapped, weight_writes.step("SGD"), storages_given_back)


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
@pytest.mark.parametrize("network", [one_region, pytest.param(with_torch, marks=pytest.mark.slow)])
def test_later_writes_are_not_seen(network, write, compiled):
    model = network()
    before, fast = answers(model), compiled(model)
    assert fast._compiled.fully_compiled == (network is one_region)
    write(model)
    assert close(fast(X), before)
    assert "sparse" in str(fast.explain()) and fast._captured.borrowed is None


@pytest.mark.parametrize("write", [through_numpy, swapped])
def test_free_sizes_and_other_batches_are_of_the_same_moment(write, compiled):
    batch = torch.export.Dim.DYNAMIC
    whole, parts = one_region(), with_torch()
    more = torch.cat([X, X + 1, X - 1])
    wanted = answers(whole, more), answers(parts, more)
    made = compiled(whole), compiled(parts, dynamic_shapes=({0: batch},))
    free = compiled(whole, dynamic_shapes=({0: batch},))
    write(whole)
    write(parts)
    assert close(made[0](more), wanted[0]) and close(free(more), wanted[0])
    assert close(made[1](more), wanted[1])


def after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, write: Callable[[], object]) -> list[int]:
    """Has something written whenever a function returns; the list has an element for each time."""
    inner, times = getattr(owner, name), []

    def outer(*args: Any, **kwargs: Any) -> Any:
        found = inner(*args, **kwargs)
        times.append(1)
        write()
        return found

    monkeypatch.setattr(owner, name, outer)
    return times


MOMENTS = [
    (capture_module, "as_in_eager"),
    (pipeline, "_run_one"),
    (driver, "run"),
    (driver, "lower"),
    (Gathering, "add"),
    (Cpu, "build"),
    (driver, "_compile_rest"),
    (driver, "_complete"),
]


@pytest.mark.parametrize("network", [one_region, pytest.param(with_torch, marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[1])
def test_writes_meanwhile_make_no_mixture(network, moment, compiled, monkeypatch):
    """Each time, so that the second attempt meets them too: what it has are the weights between two writes. No version tells of them."""
    model = network()
    seen = [answers(model)]

    def and_note() -> None:
        for p in model.parameters():
            p.detach().numpy()[...] *= 1.05
        seen.append(answers(model))

    with monkeypatch.context() as patched:
        times = after(patched, *moment, and_note)
        fast = compiled(model)
    assert times or (moment[1] == "_compile_rest" and network is one_region)
    found = fast(X)
    assert any(close(found, each) for each in seen)
    assert close(fast(X), found)


def test_a_write_meanwhile_compiles_once_more_and_none_once(compiled, monkeypatch):
    model = one_region()
    times = after(monkeypatch, driver, "_complete", lambda: None)
    compiled(model)
    assert len(times) == 1
    writes = iter([lambda: through_numpy(model)])
    after(monkeypatch, driver, "assemble", lambda: next(writes, lambda: None)())
    assert close(compiled(model)(X), answers(model))
    assert len(times) == 3


def test_an_error_of_weights_that_change_is_no_error(compiled, monkeypatch):
    model, inner = one_region(), driver.assemble

    def failing(*args: Any) -> Any:
        monkeypatch.setattr(driver, "assemble", inner)
        copied_over(model)
        raise ValueError("made of two moments")

    monkeypatch.setattr(driver, "assemble", failing)
    assert close(compiled(model)(X), answers(model))


def test_pieces_that_programs_share_are_what_their_digest_says(compiled, monkeypatch):
    """A table that is packed as it is, and written to while it is: a program that has the old one gets no part of the new one."""

    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(600, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.table(x))

    model, x = sparse(Looked()), torch.arange(8).reshape(1, 8)
    old, first = copy.deepcopy(model), answers(model, x)
    with monkeypatch.context() as patched:
        after(patched, Gathering, "_laid", lambda: through_numpy(model))
        changing = compiled(model, x)
    assert close(compiled(old, x)(x), first)
    assert changing(x).shape == first.shape


def test_one_region_clones_no_weight_and_lets_go_of_the_model(compiled, monkeypatch):
    model = one_region()
    x, before = X, answers(model)
    memory = [StorageWeakRef(p.untyped_storage()) for p in model.parameters()]
    sizes = {p.numel() for p in model.parameters() if p.dim() > 1}
    clones = []
    inner = torch.Tensor.clone
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "clone", lambda tensor, **how: clones.append(tensor.numel()) or inner(tensor, **how))
        fast = compiled(model)
    assert not sizes.intersection(clones)
    for p in model.parameters():
        p.untyped_storage().resize_(p.untyped_storage().nbytes())  # nothing forbids it
    del model, p
    gc.collect()
    assert all(each.expired() for each in memory)
    assert close(fast(x), before)


def test_kernels_are_exported_with_the_weights_of_then(compiled, tmp_path, monkeypatch):
    model = one_region()
    fast, untouched = compiled(model), compiled(copy.deepcopy(model))
    storages_given_back(model)
    made = export_kernels(fast, tmp_path / "after")
    assert [k.symbol for k in made] == [k.symbol for k in export_kernels(untouched, tmp_path / "beside")]
    for file in (tmp_path / "beside").glob("*_test.bin"):
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()


class Odd(nn.Module):
    """One layer whose weight is kept in some odd way."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.linear(x, self.weight))


class Kind(torch.Tensor):
    """A subclass."""


def dense_weight() -> torch.Tensor:
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(7)) * (torch.arange(16) % 3 == 0)


def inference_weight() -> torch.Tensor:
    with torch.inference_mode():
        return dense_weight()


ODD = {
    "csr": lambda: dense_weight().to_sparse_csr(),
    "coo": lambda: dense_weight().to_sparse(),
    "transposed": lambda: dense_weight().t(),
    "inference": inference_weight,
    "negated": lambda: torch._neg_view(dense_weight()),
    "conjugate": lambda: torch.complex(dense_weight(), dense_weight()).conj().imag,
    "subclass": lambda: dense_weight().as_subclass(Kind),
    "a part": lambda: torch.cat([dense_weight(), dense_weight()])[16:],
    "requires grad": lambda: dense_weight().requires_grad_(),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_weights(kind, compiled):
    model = Odd(ODD[kind]()).eval()
    plain = Odd(model.weight.detach().to_dense() if kind in ("csr", "coo") else model.weight.detach().clone()).eval()
    plain.last = copy.deepcopy(model.last)
    before, fast = answers(plain), compiled(model)
    through_data(model)
    if kind == "transposed":
        model.weight.mul_(2)
    assert close(fast(X), before)


def test_tied_weights_are_borrowed_once(compiled):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    model[2].weight = model[0].weight
    before, fast = answers(model), compiled(model)
    through_numpy(model)
    assert close(fast(X), before)


def test_what_can_be_borrowed():
    for kind, make in ODD.items():
        assert can_be_borrowed(make()) == (kind in ("a part", "requires grad")), kind
    assert can_be_borrowed(nn.Parameter(torch.ones(2))) and can_be_borrowed(torch.empty(0, 3))
    released = torch.ones(4)
    released.untyped_storage().resize_(0)
    assert not can_be_borrowed(released) and not can_be_borrowed(torch.empty(3, device="meta"))


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.mul_(2),
        lambda x: x.add_(1).sub_(1),
        lambda x: x.data.mul_(2),
        lambda x: x.detach().numpy().fill(3),
        lambda x: x.untyped_storage().resize_(0),
        torch.Tensor.share_memory_,
    ],
)
def test_borrowed_tensors_tell_what_happened_to_them(write):
    mine, other = torch.ones(40), torch.ones(3)
    borrowed = Borrowed([mine.detach(), other.detach(), torch.empty(0)])
    assert borrowed.unchanged()
    write(mine)
    assert not borrowed.unchanged()


def test_swapping_and_new_data_are_no_writes():
    mine = nn.Parameter(torch.ones(4))
    borrowed = Borrowed([mine.detach()])
    torch.utils.swap_tensors(mine, nn.Parameter(torch.zeros(4)))
    assert borrowed.unchanged() and not mine.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.float16, torch.uint8, torch.complex64])
def test_arrays_show_the_tensor_and_leave_it_resizable(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    array = array_of(tensor)
    assert array.tolist() == tensor.tolist() and array.dtype == tensor.numpy().dtype and array_of(tensor[:0]).shape == (0, 3)
    assert array_of(torch.ones(3, dtype=torch.bfloat16)).tolist() == [0x3F80] * 3
    other = torch.ones(2)
    array_of(other)
    other.untyped_storage().resize_(0)


def test_programs_are_borrowed_from_and_files_are_nobody_elses(kernels, tmp_path, monkeypatch):
    model = one_region()
    before, program = answers(model), torch.export.export(model, (X,))
    torch.export.save(program, tmp_path / "net.pt2")
    looks = after(monkeypatch, Borrowed, "_state", lambda: None)
    fast = sparsec.compile(program, threads=1, cache_dir=kernels)
    assert len(looks) == 2
    loaded = sparsec.compile(tmp_path / "net.pt2", threads=1, cache_dir=kernels)
    assert len(looks) == 2
    through_numpy(model)
    assert close(fast(X), before) and close(loaded(X), before) and not close(answers(model), before)


def test_weights_are_borrowed_in_inference_mode(compiled):
    model = one_region()
    before = answers(model)
    with torch.inference_mode():
        fast = compiled(model)
    through_numpy(model)
    assert close(fast(X), before)
