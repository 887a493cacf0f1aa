"""What a model's code keeps of a call without data, and must not: attributes of its modules, and caches of functools.

@lru_cache                                   called while a graph is made: the cache holds a tensor without data, and would give
def positions(n): return torch.arange(n)     it to the model's next call in eager mode
"""

from __future__ import annotations

import functools
import gc
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

_CACHE = type(functools.lru_cache(lambda: None))
_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
#: Of other kinds in the standard library and in torch, others may have hold: locks, loggers, pools.
_NAMESPACES = (SimpleNamespace, Namespace)
_SINGLE = (str, bytes, int, float, type(None), Tensor, type)
#: Values that are looked into.
_MOST = 100_000
_MOST_ITEMS = 10_000


@contextmanager
def unchanged(module: nn.Module) -> Iterator[Attributes]:
    """What a module and the objects that it holds keep of a call is forgotten: attributes, containers among them, and caches."""
    attributes = Attributes(module)
    try:
        yield attributes
    finally:
        attributes.restore()
        _clear_caches(module)


@contextmanager
def run_apart(module: nn.Module) -> Iterator[None]:
    """Here the module may run in eager mode, to see what it does: without gradients, random numbers and what it keeps are put back."""
    with torch.no_grad(), unchanged(module), torch.random.fork_rng(devices=[]):
        yield


class Attributes:
    """What a module's parts hold, as it is now: attributes, those of plain objects among them, and what containers have in them.

    Classes and files, which others share, are put back where they hold a tensor without data.
    """

    def __init__(self, module: nn.Module) -> None:
        self._held = [(name, container, copy(container)) for name, container in _held(module)]
        self._shared = [_Shared(owner) for owner in _owners(module)]

    def changed(self) -> list[str]:
        """The names of attributes that are something else now, or hold something else."""
        found = []
        for name, now, before in self._held:
            if name.endswith("."):
                found += [name + key for key in now.keys() | before.keys() if not _same(now.get(key, self), before.get(key, self))]
            elif not _same_items(now, before):
                found.append(name)
        return sorted({name.lstrip(".") for name in found})

    def restore(self) -> None:
        """Makes all of it what it was."""
        for _, now, before in self._held:
            _refill(now, before)
        for shared in self._shared:
            shared.restore()


class _Shared:
    """What a class or a file has."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.before = owner, dict(vars(owner))
        containers = {name: value for name, value in self.before.items() if type(value) in _CONTAINERS and len(value) <= _MOST_ITEMS}
        self.inside = {name: copy(value) for name, value in containers.items()}

    def restore(self) -> None:
        now, before = dict(vars(self.owner)), self.before
        changed = [name for name in {**now, **before} if not _same(now.get(name, self), before.get(name, self))]
        refilled = [name for name, content in self.inside.items() if not _same_items(before[name], content)]
        if not any(_holds_stand_ins(now.get(name)) for name in changed + refilled):
            return
        for name in changed:
            setattr(self.owner, name, before[name]) if name in before else delattr(self.owner, name)
        for name in refilled:
            _refill(before[name], self.inside[name])


def _refill(now: Any, before: Any) -> None:
    if _same_items(now, before):
        return
    if isinstance(now, dict):
        for key in now.keys() - before.keys():
            del now[key]
    else:
        now.clear()
    now.extend(before) if isinstance(now, list | deque) else now.update(before)


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Containers that a module reaches, each once, and where: names that end in a dot are those of an object, with its attributes."""
    parts = [(f"{name}." if name else ".", part) for name, part in module.named_modules()]
    left, seen = [(name, part.__dict__) for name, part in parts], {id(part) for _, part in parts}
    while left and len(seen) < _MOST:
        name, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) in _CONTAINERS:
            yield name, value
        if isinstance(value, dict):
            named = [(f"{name}{key}" if name.endswith(".") else name, each) for key, each in [*value.items()]]
            left += [pair for pair in named if not isinstance(pair[1], _SINGLE)]
        elif isinstance(value, list | tuple | set | frozenset | deque):
            left += [(name, each) for each in [*value] if not isinstance(each, _SINGLE)]
        elif _is_plain_object(value):
            left.append((f"{name}.", value.__dict__))


def _is_plain_object(value: Any) -> bool:
    if isinstance(value, _NAMESPACES):
        return True
    library = type(value).__module__.partition(".")[0]
    skipped = isinstance(value, type | nn.Module | Tensor | ModuleType) or library == "torch" or library in sys.stdlib_module_names
    return not skipped and type(getattr(value, "__dict__", None)) is dict


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, int | float | str) and a == b)


def _same_items(now: Any, before: Any) -> bool:
    return len(now) == len(before) and all(map(_same, _items(now), _items(before)))


def _items(container: Any) -> list[Any]:
    return [part for pair in [*container.items()] for part in pair] if isinstance(container, dict) else [*container]


def _clear_caches(module: nn.Module) -> None:
    for cache in _caches(module):
        if any(map(_holds_stand_ins, gc.get_referents(cache))):
            cache.cache_clear()


def _caches(module: nn.Module) -> Iterator[Any]:
    """Functions with a cache in the classes of a module's parts, in the files that hold these, and inside of other functions there."""
    for value in [value for owner in _owners(module) for value in [*vars(owner).values()]]:
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        cells = getattr(value, "__closure__", None) or ()
        yield from (each for each in (value, *map(_content, cells)) if type(each) is _CACHE)


def _owners(module: nn.Module) -> list[Any]:
    """The classes of a module's parts and the files that hold them, but for torch's."""
    classes = {each for part in module.modules() for each in type(part).__mro__ if not each.__module__.startswith(("torch.", "builtins"))}
    return [*classes, *(sys.modules[name] for name in {each.__module__ for each in classes} if name in sys.modules)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Nothing yet.
        return None


def _holds_stand_ins(value: Any) -> bool:
    return any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(value))
