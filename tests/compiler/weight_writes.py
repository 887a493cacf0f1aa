"""Ways to change the weights of a module, as people and libraries do: (name, function of the module)."""

import copy
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

Write = Callable[[nn.Module], object]
FUSED = ("Adam", "AdamW", "SGD", "Adagrad")
FOREACH = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def first(model: nn.Module) -> nn.Module:
    """The module whose weight most writes are about."""
    return next(part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear))


def another(model: nn.Module) -> nn.Module:
    """The same module with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.5)
    return other


def values(model: nn.Module) -> list[Tensor]:
    """The parameters as tensors that know nothing of autograd, sharing memory."""
    return [p.detach() for p in model.parameters()]


def step(name: str, **options: object) -> Write:
    """One step of an optimizer over all parameters."""

    def write(model: nn.Module) -> None:
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        getattr(torch.optim, name)(model.parameters(), lr=0.1, **options).step()
        model.zero_grad()

    return write


def closure_step(model: nn.Module) -> None:
    """L-BFGS evaluates and steps by itself."""

    def closure() -> Tensor:
        for p in model.parameters():
            p.grad = p.detach().clone()
        return torch.tensor(1.0)

    torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=1).step(closure)
    model.zero_grad()


def mask_of(weight: Tensor) -> Tensor:
    """Half of the places, none of the others."""
    return (torch.arange(weight.numel()).reshape(weight.shape) % 2).to(weight.dtype)


def numpy_view(model: nn.Module) -> None:
    array = first(model).weight.detach().numpy()
    array *= 2


def raw_memory(model: nn.Module) -> None:
    weight = first(model).weight
    source = weight.detach().clone() * 2
    ctypes.memmove(weight.data_ptr(), source.data_ptr(), source.nbytes)


def set_source(model: nn.Module) -> None:
    with torch.no_grad():
        first(model).weight.set_(first(model).weight * 2)


def resized(model: nn.Module) -> None:
    weight = first(model).weight
    held = weight.detach().clone() * 2
    weight.untyped_storage().resize_(0)
    weight.untyped_storage().resize_(held.nbytes)
    weight.data.copy_(held)


def resized_tensor(model: nn.Module) -> None:
    with torch.no_grad():
        weight = first(model).weight.requires_grad_(False)
        shape = weight.shape
        weight.resize_(4 * weight.numel()).fill_(0.5)
        weight.resize_(shape)


def swapped(model: nn.Module) -> None:
    for old, new in zip(list(model.parameters()), list(another(model).parameters()), strict=True):
        torch.utils.swap_tensors(old, new)


@contextmanager
def future(name: str) -> Iterator[None]:
    """One of the flags of torch.__future__, on."""
    getattr(torch.__future__, f"set_{name}")(True)
    try:
        yield
    finally:
        getattr(torch.__future__, f"set_{name}")(False)


def converted(flag: str | None) -> Write:
    """There and back by way of another dtype, which loses digits, and a function over all tensors."""

    def write(model: nn.Module) -> None:
        change = lambda t: t * 2 if t.is_floating_point() else t  # noqa: E731
        if flag is None:
            model.bfloat16().float()._apply(change)
            return
        with future(flag):
            model.bfloat16().float()._apply(change)

    return write


def loaded(model: nn.Module, flag: str = "", **options: object) -> None:
    if flag:
        with future(flag):
            model.load_state_dict(another(model).state_dict(), **options)
    else:
        model.load_state_dict(another(model).state_dict(), **options)


def averaged(model: nn.Module) -> None:
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), another(model).parameters(), strict=True):
            mine.lerp_(theirs, 0.5)


def averaged_by_library(model: nn.Module) -> None:
    swa = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    swa.module = model
    swa.n_averaged += 1
    swa.update_parameters(another(model))


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def parametrized(model: nn.Module) -> None:
    parametrize.register_parametrization(first(model), "weight", Twice())


def parametrized_and_removed(model: nn.Module) -> None:
    parametrized(model)
    parametrize.remove_parametrizations(first(model), "weight")


def spectral(model: nn.Module) -> None:
    parametrizations.spectral_norm(first(model))
    model.eval()


def pruned(model: nn.Module) -> None:
    prune.l1_unstructured(first(model), "weight", amount=0.5)


def pruned_twice(model: nn.Module) -> None:
    pruned(model)
    prune.random_unstructured(first(model), "weight", amount=0.5)


def pruned_for_good(model: nn.Module) -> None:
    pruned(model)
    prune.remove(first(model), "weight")


def low_rank_merged(model: nn.Module) -> None:
    weight = first(model).weight
    flat = weight.data.flatten(1)
    flat += torch.randn(flat.shape[0], 2) @ torch.randn(2, flat.shape[1])


def from_vector(model: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters()).detach() * 2
    nn.utils.vector_to_parameters(vector, model.parameters())


def flat_parameters(model: nn.Module) -> Tensor:
    """One buffer that all parameters are made views of, without their values changing."""
    flat = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    start = 0
    for p in model.parameters():
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    return flat


def out_argument(model: nn.Module) -> None:
    weight = first(model).weight
    torch.mul(weight.data, 2, out=weight.data)


def in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        first(model).weight.mul_(2)


def storage_copied(model: nn.Module) -> None:
    weight = first(model).weight
    weight.untyped_storage().copy_((weight.detach() * 2).untyped_storage())


def re_registered(model: nn.Module) -> None:
    part = first(model)
    weight = nn.Parameter(part.weight.detach() * 2, requires_grad=False)
    del part.weight
    part.register_parameter("weight", weight)


def written(write: Callable[[Tensor], object]) -> Write:
    """A write to the first weight, without gradients."""

    def run(model: nn.Module) -> None:
        with torch.no_grad():
            write(first(model).weight)

    return run


def assign_data(model: nn.Module) -> None:
    first(model).weight.data = first(model).weight.data * 2


WRITES: dict[str, Write] = {
    **{f"{name} fused": step(name, fused=True) for name in FUSED},
    **{f"{name} foreach": step(name, foreach=True) for name in FOREACH},
    "SGD one by one": step("SGD", foreach=False),
    "LBFGS": closure_step,
    "_foreach_mul_": lambda model: torch._foreach_mul_(values(model), 2.0),
    "_foreach_add_": lambda model: torch._foreach_add_([p.data for p in model.parameters()], 1.0),
    "_foreach_copy_": lambda model: torch._foreach_copy_(values(model), values(another(model))),
    "in place": written(lambda weight: weight.mul_(2)),
    "init": written(lambda weight: nn.init.normal_(weight)),
    "in inference mode": in_inference_mode,
    "data times mask": lambda model: first(model).weight.data.mul_(mask_of(first(model).weight)),
    "data copied": lambda model: first(model).weight.data.copy_(torch.randn_like(first(model).weight)),
    "data transposed": lambda model: first(model).weight.data.copy_(first(model).weight.data.flip(0)),
    "data negated": lambda model: first(model).weight.data.neg_(),
    "data of a buffer or bias": lambda model: first(model).bias.data.mul_(-3),
    "data assigned": assign_data,
    "out": out_argument,
    "numpy": numpy_view,
    "raw memory": raw_memory,
    "storage copied": storage_copied,
    "set_": set_source,
    "storage resized": resized,
    "resize_": resized_tensor,
    "swap_tensors": swapped,
    "to": converted(None),
    "to, swapped": converted("swap_module_params_on_conversion"),
    "to, overwritten": converted("overwrite_module_params_on_conversion"),
    "load_state_dict": loaded,
    "load_state_dict, assign": lambda model: loaded(model, assign=True),
    "load_state_dict, swapped": lambda model: loaded(model, "swap_module_params_on_conversion"),
    "moving average": averaged,
    "AveragedModel": averaged_by_library,
    "parametrized": parametrized,
    "parametrized and removed": parametrized_and_removed,
    "spectral norm": spectral,
    "pruned": pruned,
    "pruned twice": pruned_twice,
    "pruned for good": pruned_for_good,
    "low rank merged": low_rank_merged,
    "from a vector": from_vector,
    "registered again": re_registered,
}
