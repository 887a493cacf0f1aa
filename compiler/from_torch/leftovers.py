"""What a model's code keeps of a call without data, and must not: attributes of its modules, and caches of functools.

@lru_cache                                   called while a graph is made: the cache holds a tensor without data, and would give
def positions(n): return torch.arange(n)     it to the model's next call in eager mode
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

_CACHE = type(functools.lru_cache(lambda: None))
_CONTAINERS = (dict, list, set)


def unchanged(module: nn.Module) -> AbstractContextManager[None]:
    """What modules keep of a call is forgotten, in dictionaries, lists and sets among their attributes and in caches as well."""
    return _restored(module, lambda value: True)


def without_stand_ins(module: nn.Module) -> AbstractContextManager[None]:
    """Attributes that hold tensors without data afterwards are again what they were; caches that hold such are cleared."""
    return _restored(module, _holds_stand_ins)


@contextmanager
def _restored(module: nn.Module, asked: Callable[[Any], bool]) -> Iterator[None]:
    restore = [_restoring(part.__dict__) for part in module.modules()]
    try:
        yield
    finally:
        for each in restore:
            each(asked)
        _clear_caches(module)


def _clear_caches(module: nn.Module) -> None:
    for cache in _caches(module):
        if any(map(_holds_stand_ins, gc.get_referents(cache))):
            cache.cache_clear()


def _caches(module: nn.Module) -> Iterator[Any]:
    """Functions with a cache in the classes of a module's parts, in the files that hold these, and inside of other functions there."""
    classes = {each for part in module.modules() for each in type(part).__mro__ if not each.__module__.startswith(("torch.", "builtins"))}
    spaces = [vars(each) for each in classes] + [vars(sys.modules[name]) for name in {c.__module__ for c in classes} if name in sys.modules]
    for value in [value for space in spaces for value in [*space.values()]]:
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        cells = getattr(value, "__closure__", None) or ()
        yield from (each for each in (value, *map(_content, cells)) if type(each) is _CACHE)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Nothing yet.
        return None


def _restoring(attributes: dict[str, Any]) -> Callable[[Callable[[Any], bool]], None]:
    """Makes attributes what they are now, those whose values answer yes."""
    before = dict(attributes)
    inside = {name: copy(value) for name, value in before.items() if type(value) in _CONTAINERS}

    def restore(asked: Callable[[Any], bool]) -> None:
        for name in [name for name, value in attributes.items() if asked(value)]:
            if name in before:
                attributes[name] = before[name]
            else:
                del attributes[name]
        for name, content in inside.items():
            if asked(attributes.get(name)) or asked(before[name]):
                _refill(before[name], content)
        for name in before.keys() - attributes.keys():
            attributes[name] = before[name]

    return restore


def _refill(container: Any, content: Any) -> None:
    if len(container) == len(content) and all(a is b for a, b in zip(_items(container), _items(content), strict=True)):
        return
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)


def _items(container: Any) -> list[Any]:
    return [part for pair in container.items() for part in pair] if isinstance(container, Mapping) else list(container)


def _holds_stand_ins(value: Any) -> bool:
    return any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(value))
