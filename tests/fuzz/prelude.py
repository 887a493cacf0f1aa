"""Stands on top of every script of the search: seeded weights with zeros, and the comparison with eager."""

# ruff: noqa: F401
import contextlib
import copy
import functools
import math
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import sparsec

PATTERNS = ("none", "90%", "50%", "rows", "columns", "blocks", "last row", "all")


class Wrong(Exception):
    """What was compiled differs from eager."""


class Skip(Exception):
    """Says nothing about sparsec: eager itself fails or overflows, or an exporter of torch fails."""


class Refused(Exception):
    """Another size than the first, where a door does not promise to take it."""


@functools.lru_cache
def spread(count):
    """Numbers from 0 up, which a cache keeps between calls."""
    return torch.arange(count) / 8.0


class Store:
    """A plain object."""

    count, table = 0, None


class Kept(nn.Module):
    """Adds a number by place along an axis; what was made for a size is kept for the next call, in one of several ways."""

    def __init__(self, way, axis):
        super().__init__()
        self.way, self.axis = way, axis
        self.by_size, self.rows, self.largest, self.held = {}, [], None, Store()

    def forward(self, x):
        shape = [1] * x.dim()
        shape[self.axis] = x.shape[self.axis]
        return x + getattr(self, self.way)(x.shape[self.axis]).view(shape)

    def in_dictionary(self, count):
        if count not in self.by_size:
            self.by_size[count] = torch.arange(count) / 8.0
        return self.by_size[count]

    def in_list(self, count):
        while len(self.rows) < count:
            self.rows.append(torch.tensor(len(self.rows) / 8.0))
        return torch.stack(self.rows[:count])

    def in_attribute(self, count):
        if self.largest is None or len(self.largest) < count:
            self.largest = torch.arange(count) / 8.0
        return self.largest[:count]

    def in_object(self, count):
        if count > self.held.count:
            self.held.count, self.held.table = count, torch.arange(count) / 8.0
        return self.held.table[:count]

    def in_cache(self, count):
        return spread(count)

    @functools.cached_property
    def everything(self):
        return torch.arange(4096) / 8.0

    def in_property(self, count):
        return self.everything[:count]


def seeded(model: nn.Module, zeros: str, seed: int) -> nn.Module:
    """The model in eval mode with weights of a seed; matrices get the pattern ``zeros``, "mixed" a pattern each."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        normal = torch.randn(tensor.shape, generator=draw)
        if name.endswith("running_mean") or (isinstance(tensor, nn.Parameter) and tensor.dim() < 2):
            tensor.data.copy_(1 + normal / 4 if name.endswith("weight") else normal / 4)
        elif name.endswith("running_var"):
            tensor.data.copy_(normal.abs() + 0.5)
        elif isinstance(tensor, nn.Parameter):
            number = int(torch.randint(len(PATTERNS), (), generator=draw))
            pattern = PATTERNS[number] if zeros == "mixed" else zeros
            tensor.data.copy_(normal / math.sqrt(max(1, tensor[0].numel())) * kept(tensor, pattern, draw))
    return model.eval()


def kept(tensor: torch.Tensor, pattern: str, draw: torch.Generator) -> torch.Tensor:
    """The mask of a pattern for a weight of at least two dimensions."""
    rows, columns, chance = tensor.shape[0], tensor[0].numel(), torch.rand(tensor.shape, generator=draw)
    by_row = chance.reshape(rows, columns)
    match pattern:
        case "90%" | "50%":
            mask = by_row >= float(pattern[:-1]) / 100
        case "rows":
            mask = (by_row[:, :1] >= 0.5).expand(rows, columns)
        case "columns":
            mask = (chance[:1, :, ...].reshape(1, columns) >= 0.5).expand(rows, columns)
        case "blocks":
            mask = (by_row[::8] >= 0.8).repeat_interleave(8, 0)[:rows]
        case "last row":
            mask = (torch.arange(rows) == rows - 1)[:, None].expand(rows, columns)
        case _:
            mask = torch.full((rows, columns), pattern == "none")
    return mask.reshape(tensor.shape).float()


def check(fast, model, inputs, number=0, *, aliases=True, values=True, structure=True):
    """Compare a call of ``fast`` with eager: structure, shapes, dtypes, values, writes to inputs, and which results share memory.

    Without ``structure`` the results' order is all that counts. A deviation counts if it is above 1e-4 of the largest magnitude, above
    20 times that of eager in float32, both against float64, and above 20 times what rounding the weights changes.
    """
    mine, theirs = inputs(number), inputs(number)
    with torch.no_grad():
        try:
            wanted, exact, exact_inputs = eager(model, inputs, number, theirs)
        except Skip:
            if number:
                return
            raise
        found = fast(*mine)
    if values:
        same(mine, theirs, exact_inputs, True, "after the call, input")
        same(found, wanted, exact, structure, noise=lambda: noise_of(model, inputs, number))
    for position in range(len(tensors(wanted)) if aliases and values else 0):
        try:
            tensors(wanted)[position].add_(1)
            tensors(exact)[position].add_(1)
        except RuntimeError:
            continue
        tensors(found)[position].add_(1)
        what = f"after a write to result {position}, "
        same(found, wanted, exact, True, what + "result", noise=lambda: noise_of(model, inputs, number))
        same(mine, theirs, exact_inputs, True, what + "input")


def unspoiled(model, fresh, inputs, call=None):
    """Compiling, or a first call of what was compiled, leaves the model's own tensors what they are in one that was made afresh."""
    with torch.no_grad():
        if call is not None:
            call(*inputs())
        try:
            found, error = model(*inputs()), None
        except Exception as raised:
            error = raised
        spread.cache_clear()
        try:
            wanted = fresh(*inputs())
        except Exception:
            return
    if error is not None:
        raise Wrong(f"the model after compiling: {type(error).__name__}: {error}") from error
    same(found, wanted, wanted, what="the model after compiling, result")


def refusable(check, *args, **options):
    """A check of a call that `sparsec` may refuse as not fitting."""
    try:
        check(*args, **options)
    except sparsec.errors.InvalidInput as error:
        raise Refused(str(error)) from error


def within(around, fast):
    """What calls ``fast`` inside of a context."""

    def call(*args):
        with around():
            return fast(*args)

    return call


def elsewhere(model, inputs):
    """Another default device, where the model makes nothing on it: else eager mode too reads memory that nobody has written."""
    here, there = inputs(0), inputs(0)
    try:
        with torch.no_grad():
            wanted = tensors(model(*here))
            with torch.device("meta"):
                found = tensors(model(*there))
            alike = all(a.device == b.device and torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    except Exception:
        alike = False
    return torch.device("meta") if alike else contextlib.nullcontext()


def recording(model, inputs):
    """Gradients are recorded where the model takes that: eager mode refuses some writes to views then."""
    try:
        with torch.enable_grad():
            copy.deepcopy(model)(*inputs(0))
    except Exception:
        return torch.no_grad()
    return torch.enable_grad()


def eager(model, inputs, number, theirs):
    """Results in float32, those in float64, and the inputs of the latter. Skip where eager fails or overflows."""
    exact_inputs = inputs(number, torch.float64)
    try:
        wanted = model(*theirs)
        exact = copy.deepcopy(model).double()(*exact_inputs)
    except Exception as error:
        raise Skip(f"eager: {type(error).__name__}: {error}") from error
    if not all(bool(x.isfinite().all()) and float(x.abs().max() if x.numel() else 0) < 1e6 for x in tensors(exact)):
        raise Skip("eager overflows")
    return wanted, exact, exact_inputs


def tensors(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def numbers(value):
    """Leaves that are no tensors."""
    return [leaf for leaf in pytree.tree_leaves(value) if not isinstance(leaf, torch.Tensor)]


def noise_of(model, inputs, number):
    """How much each result changes if the last bits of weights and layers' results do: what no program in float32 can promise."""
    runs = []
    for seed in range(2):
        draw, rounded = torch.Generator().manual_seed(seed), copy.deepcopy(model).double()

        def bent(x, draw=draw):
            if not x.is_floating_point():
                return x
            return x * (1 + (2 * torch.rand(x.shape, generator=draw, dtype=x.dtype) - 1) * torch.finfo(torch.float32).eps)

        with torch.no_grad():
            for x in [*rounded.parameters(), *rounded.buffers()]:
                x.copy_(bent(x))
            for layer in rounded.modules():
                if not any(layer.children()):
                    layer.register_forward_hook(lambda *call, bent=bent: pytree.tree_map_only(torch.Tensor, bent, call[-1]))
            runs.append(tensors(rounded(*inputs(number, torch.float64))))
    return [float((a.double() - b.double()).abs().max()) if a.numel() else 0.0 for a, b in zip(*runs, strict=True)]


def same(found, wanted, exact, structure=True, what="result", noise=None):
    if structure and pytree.tree_structure(found) != pytree.tree_structure(wanted):
        raise Wrong(f"{what}: {pytree.tree_structure(found)} for {pytree.tree_structure(wanted)}")
    if len(tensors(found)) != len(tensors(wanted)):
        raise Wrong(f"{what}: {len(tensors(found))} tensors for {len(tensors(wanted))}")
    if structure and numbers(found) != numbers(wanted):
        raise Wrong(f"{what}: {numbers(found)} for {numbers(wanted)}")
    for number, (a, b, c) in enumerate(zip(tensors(found), tensors(wanted), tensors(exact), strict=True)):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise Wrong(f"{what} {number}: {a.dtype} {list(a.shape)} for {b.dtype} {list(b.shape)}")
        error, limit = deviation(a, c), max(1e-4, 20 * deviation(b, c))
        if not error <= limit and not (noise and error * magnitude(c) <= 20 * noise()[number]):
            raise Wrong(f"{what} {number}: relative error {error:.1e}")


def deviation(tensor, exact):
    """Largest deviation over the largest magnitude."""
    if not exact.numel():
        return 0.0
    return float((tensor.double() - exact.double()).abs().max()) / magnitude(exact)


def magnitude(exact):
    """The largest, at least a thousandth."""
    return float(exact.double().abs().max().clamp_min(1e-3))


def foreign(function, *args, **kwargs):
    """A call of an exporter, whose failure is none of ours, nor what it leaves in a cache."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise Skip(f"exporter: {type(error).__name__}: {error}") from error
    finally:
        spread.cache_clear()


def weight(model, number):
    """The name and value of a parameter, the largest first; Skip if there is none."""
    found = sorted(model.named_parameters(), key=lambda pair: -pair[1].numel())
    if not found:
        raise Skip("no parameters")
    return found[number % len(found)]


def owner(model, name):
    """The module that holds a parameter, and its name there."""
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def train(model, optimizer, call, inputs):
    """A step of an optimizer."""
    with recording(model, inputs):
        results = [x for x in tensors(call(*inputs(0))) if x.requires_grad]
    if not results:
        raise Skip("nothing to train")
    optimizer.zero_grad()
    sum(x.square().mean() for x in results).backward()
    optimizer.step()
    optimizer.zero_grad()
