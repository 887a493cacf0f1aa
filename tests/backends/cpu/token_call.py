"""Calls on tokens as the backend plans them, run with fewer tokens than they were planned for and garbage wherever no token is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsec.backends import plan
from sparsec.backends.plan import Buffer, Task
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec
from sparsec.run.affine import Affine, Count
from tests.backends.cpu.kernel_call import At, Call, Kernels


@dataclass(frozen=True)
class Tokens:
    """``count`` tokens of at most ``most`` (0: the sizes are no run-time sizes) on tiles of ``tile``."""

    count: int
    most: int = 0
    tile: int = 64

    def index_space(self, plus: int = 0) -> Geometry:
        """The index space of the tokens and ``plus`` more."""
        return Geometry(1, (self.most or self.count) + plus, 0, self.tile, Affine("T", plus) if self.most else None)

    def tiled(self, features: int, plus: int = 0) -> Storage:
        return Storage("tiled", features, self.index_space(plus))

    def rows(self, features: int = 0, dtype: str = "float32") -> Storage:
        return Storage("token_major", features, self.index_space(), dtype)


def to_tiled(x: np.ndarray, storage: Storage) -> np.ndarray:
    """[T, F] -> [tiles, F, tile]; NaN past T."""
    tile, tiles = storage.index_space.tile, int(storage.index_space.tiles)
    out = np.full((tiles * tile, x.shape[1]), np.nan, np.float32)
    out[: len(x)] = x
    return np.ascontiguousarray(out.reshape(tiles, tile, -1).swapaxes(1, 2))


def from_tiled(memory: np.ndarray, tokens: int) -> np.ndarray:
    """[tiles, F, tile] -> [T, F]"""
    return memory.swapaxes(1, 2).reshape(-1, memory.shape[1])[:tokens]


def garbage(storage: Storage) -> np.ndarray:
    """Packed storage that nobody has written."""
    return np.full((int(storage.index_space.tiles), storage.channels, storage.index_space.tile), np.nan, np.float32)


def words(x: np.ndarray) -> np.ndarray:
    """The bytes of any array, as float32 words."""
    raw = np.ascontiguousarray(x).view(np.uint8).reshape(-1)
    return np.concatenate([raw, np.zeros(-len(raw) % 4, np.uint8)]).view(np.float32)


def spec_of(op: str, **attributes: Any) -> KernelSpec:
    """A spec that carries attributes only: shapes are in the storages."""
    return KernelSpec(op, ((),), (), attributes=tuple(sorted(attributes.items())))


def task_of(spec: KernelSpec, source: Storage, target: Storage, *weights: np.ndarray | None) -> Task:
    return Task("node", spec, (Buffer("x", source),), None, Buffer("y", target), weights)


def run(kernels: Kernels, call: plan.Call, x: np.ndarray, y: np.ndarray, size: int = 0, threads: int = 1) -> np.ndarray:
    """What a call with a source x and a target y leaves in y, at a run-time size."""
    values: dict[str, Any] = {name: At(b.name, b.storage.origin) for name, b in call.buffers.items()}
    values |= dict(call.constants) | {name: at_size(v, size) for name, v in call.scalars.items()}
    memory = {call.buffers["x"].name: words(x), call.buffers["y"].name: y}
    return kernels.run([Call(call.source, values)], memory, at_size(call.units, size), threads=threads)[call.buffers["y"].name]


def at_size(value: Any, size: int) -> Any:
    return value.at(size) if isinstance(value, Count) else value


def reference(spec: KernelSpec, x: np.ndarray, *weights: np.ndarray | None) -> np.ndarray:
    """The spec's own result for one sample, in float64."""
    return spec.reference(_batch(x), *(None if w is None else _double(w) for w in weights))[0].numpy()


def _batch(x: np.ndarray) -> torch.Tensor:
    return _double(x)[None]


def _double(x: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    return tensor.double() if tensor.is_floating_point() else tensor
