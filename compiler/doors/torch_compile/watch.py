"""One quick check of a module in place of the thousands of guards that Dynamo evaluates at each call, and no weights passed.

After a network has run, Dynamo's guards on a module and the code that fetches its weights find cold caches: a fifth of a pruned network's
time. What they look at lies in the dictionaries of modules and in tensors, all of which carry a version. So a ``Watch`` keeps, per
instance, the versions of everything the guards would read. When one has changed, or another instance comes, the values that the guards were
about are read and compared one by one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsec.doors.torch_compile import stamps as torch_memory
from sparsec.doors.torch_compile.seen import Words

CONTAINERS = ("_parameters", "_buffers", "_modules")
_RESTLESS = 32
#: Classes whose modules change between calls so often that Dynamo's own guards are cheaper.
unsteady: weakref.WeakSet[type] = weakref.WeakSet()


def _nothing() -> None:
    return None


class Snapshot:
    """One instance as it was when all guards held.

    Attributes:
        weights: the tensors that the graph takes.
        entry: gives what the owner of the watch has set for these weights, for as long as that lives and no weight was written to or given
            other memory; else None.
    """

    def __init__(self, module: nn.Module, weights: tuple[Tensor, ...], dicts: list[dict], gone: Callable[[Any], object]) -> None:
        self.owner, self.weights = weakref.ref(module, gone), weights
        self.entry: Callable[[], Any] = _nothing
        self._dicts = dicts
        self._first = Words(np.sort(np.array(torch_memory.stamps(dicts) + torch_memory.identities(weights), np.int64)))
        self._follow()

    def _follow(self) -> None:
        """Take the memory that the weights have now for theirs, and let go of what they had."""
        with torch.inference_mode(False), torch.no_grad():
            self._alive = [weight.untyped_storage() for weight in self.weights], [weight.detach() for weight in self.weights]
        fixed, free = torch_memory.shapes(self.weights), torch_memory.contents(self.weights)
        places = np.array([*fixed, *free], np.int64)
        order = np.argsort(places)
        self._second, self._fixed = Words(places[order]), order < len(fixed)

    def holds(self) -> bool:
        """Whether nothing has changed but, perhaps, the values of weights."""
        if not self._first.same():
            return False
        if self._second.same():
            return True
        if self._second.changed()[self._fixed].any():
            return False
        self.entry = _nothing
        self._follow()
        return True


class Watch:
    """Stands for the guards on one module of a compiled frame.

    The first module it is called with is the one compiled for.

    Args:
        root: the module's name in the frame, ``L['self']``.
        paths: names of the values that guards were about, all reached through dictionaries of modules.
        absent: (name of a module, attribute it must not have).
        weights: names of the tensors that the graph takes, in the graph's order.
    """

    def __init__(self, root: str, paths: Sequence[str], absent: Sequence[tuple[str, str]], weights: Sequence[str]) -> None:
        names = [*paths, *(name for name, _ in absent), *weights]
        self._read = compile(f"({', '.join(names)},)", f"<guards on {root}>", "eval")
        self._root, self._absent, self._counts = root[3:-2], [attr for _, attr in absent], (len(paths), len(absent))
        self._seen: dict[int, Snapshot] = {}
        self._current = threading.local()
        self._fingerprints: list[Any] | None = None
        self._restless = 0

    @property
    def current(self) -> Snapshot:
        """The instance that this thread's current call is about."""
        return self._seen[self._current.key]

    def __call__(self, module: Any) -> bool:
        """Whether what was compiled holds for ``module``, which then is ``current``."""
        snapshot = self._seen.get(id(module))
        if snapshot is not None and snapshot.owner() is module and snapshot.holds():
            self._current.key = id(module)
            return True
        if not isinstance(module, nn.Module):
            return False
        self._restless += snapshot is not None
        if self._restless == _RESTLESS:
            unsteady.add(type(module))
        return self._restless < _RESTLESS and self._learn(module)

    def _look(self, module: nn.Module) -> tuple[list[Any], tuple[Tensor, ...], list[dict]]:
        """Fingerprints of all that guards were about, the weights, and the dictionaries to watch."""
        found = eval(self._read, {"L": {self._root: module}})
        first, second = self._counts
        fingerprints = [_fingerprint(value) for value in found[:first]]
        fingerprints += [attr in vars(value) for attr, value in zip(self._absent, found[first : first + second], strict=True)]
        dicts = {id(d): d for d in (*_dicts(module), *(value for value in found[:first] if isinstance(value, dict)))}
        return fingerprints, found[first + second :], list(dicts.values())

    def _learn(self, module: nn.Module) -> bool:
        try:
            fingerprints, weights, dicts = self._look(module)
        except (AttributeError, KeyError, IndexError, TypeError):
            return False
        self._fingerprints = fingerprints if self._fingerprints is None else self._fingerprints
        if fingerprints != self._fingerprints or not all(isinstance(weight, Tensor) for weight in weights):
            return False
        seen, key = self._seen, id(module)
        try:
            seen[key] = Snapshot(module, weights, dicts, lambda _: seen.pop(key, None))
        except ValueError:
            return False
        self._current.key = key
        return True


def _dicts(root: nn.Module) -> Iterable[dict]:
    """Where the modules under ``root`` hold attributes, tensors and one another."""
    for module in root.modules():
        yield from (vars(module), *(vars(module)[name] for name in CONTAINERS))


def _fingerprint(value: Any) -> Any:
    if isinstance(value, Tensor):
        kind = type(value), value.dtype, value.device, value.layout, value.requires_grad, torch._C._dispatch_keys(value).raw_repr()
        return (*kind, tuple(value.size()), tuple(value.stride()))
    if isinstance(value, dict):
        return type(value), tuple(value)
    return (type(value), None) if isinstance(value, nn.Module) else (type(value), value)
