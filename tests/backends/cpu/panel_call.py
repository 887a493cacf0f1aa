"""A 1x1 or same-padded kxk convolution as the panel kernels (spmm, block) see it, with its float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sparsec.backends.base import Source
from sparsec.backends.cpu.partition import runs_of, units_of
from sparsec.lower.layouts import Geometry
from tests.backends.cpu.kernel_call import At, Call, Kernels, from_halo, pixel_mask, to_halo, to_tiled


@dataclass(frozen=True)
class Problem:
    """weight [N, K, k, k], x [K, H, W], residual [N, H, W] or None; ``tiled`` says how x is stored (1x1 only)."""

    weight: np.ndarray
    bias: np.ndarray
    x: np.ndarray
    residual: np.ndarray | None
    geometry: Geometry
    tiled: bool
    activation: str
    lo: float
    hi: float

    @property
    def x_channel(self) -> int:
        return self.geometry.tile if self.tiled else self.geometry.stride

    @property
    def matrix(self) -> np.ndarray:
        return self.weight.reshape(len(self.weight), -1)

    def offsets(self) -> np.ndarray:
        """Element offset of every column of ``matrix`` from the tile's origin."""
        _, inputs, kernel, _ = self.weight.shape
        c, dy, dx = np.meshgrid(np.arange(inputs), *[np.arange(kernel) - kernel // 2] * 2, indexing="ij")
        return (c * self.x_channel + dy * self.geometry.pitch + dx).reshape(-1)

    def run(
        self,
        kernels: Kernels,
        source: Source,
        constants: dict[str, Any],
        strip: int = 0,
        threads: int = 1,
        sharing: tuple[int, bool] = (1, False),
    ) -> np.ndarray:
        """The halo output storage [N, stride]; it held NaN in the written range and zeros in the margins before.

        ``sharing``: the most runs of rows, and whether units are runs of rows over all tiles.
        """
        g, channels = self.geometry, len(self.weight)
        work = np.diff(constants["row_start"]).reshape(constants.get("parts", 1), -1).sum(axis=0)
        runs = runs_of(work, sharing[0])
        units, shares = units_of(g.tiles, runs, sharing[1])
        y = np.zeros((channels, g.stride), np.float32)
        y[:, g.front : g.front + g.tiles * g.tile] = np.nan
        memory = {"x": to_tiled(self.x, g) if self.tiled else to_halo(self.x, g), "y": y}
        memory["residual"] = y if self.residual is None else to_halo(self.residual, g)
        places = {
            "x": At("x", 0 if self.tiled else g.front),
            "y": At("y", g.front),
            "residual": At("residual", g.front),
            "mask": pixel_mask(g),
            "rows": channels,
            "x_tile": (len(self.x) if self.tiled else 1) * g.tile,
            "y_tile": g.tile,
            "y_channel": g.stride,
            "r_tile": g.tile,
            "r_channel": g.stride,
            "lo": self.lo,
            "hi": self.hi,
            "runs": runs,
            **shares,
        }
        return kernels.run([Call(source, places | constants)], memory, units, strip, threads)["y"]

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """The output [N, H, W] in float64, and the magnitude |bias| + |w|.|x| + |residual| to which its rounding error is relative."""
        total = _convolve(self.weight, self.x) + self.bias[:, None, None].astype(np.float64)
        size = _convolve(abs(self.weight), abs(self.x)) + abs(self.bias)[:, None, None]
        if self.residual is not None:
            total, size = total + self.residual, size + abs(self.residual)
        return ACTIVATIONS[self.activation](total, self.lo, self.hi), size

    def check(self, storage: np.ndarray) -> None:
        """The pixels are right and everything else is exactly zero."""
        want, size = self.reference()
        got = from_halo(storage, self.geometry)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        excess = np.nan_to_num(abs(got - want)) - 2e-6 * np.nan_to_num(size) - 1e-6
        assert excess.max() <= 0, f"error exceeds rounding by {excess.max():.2e}"
        outside = storage.copy()
        from_halo(outside, self.geometry)[...] = 0
        assert not outside.any(), "pads or margins are not zero"


def _convolve(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Same-padded stride-1 convolution [N, K, k, k] * [K, H, W] in float64."""
    _, height, width = x.shape
    kernel = weight.shape[2]
    padded = np.pad(x.astype(np.float64), ((0, 0), *[(kernel // 2, kernel // 2)] * 2))
    shifts = [(dy, dx) for dy in range(kernel) for dx in range(kernel)]
    return sum(np.einsum("nk,khw->nhw", weight[:, :, a, b].astype(np.float64), padded[:, a : a + height, b : b + width]) for a, b in shifts)


def _sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def _hardsigmoid(v: np.ndarray) -> np.ndarray:
    return np.clip(v / 6 + 0.5, 0, 1)


def _gelu(v: np.ndarray, form: str) -> np.ndarray:
    return F.gelu(torch.from_numpy(v), approximate=form).numpy()


ACTIVATIONS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "clamp": lambda v, lo, hi: np.minimum(np.maximum(v, lo), hi),
    "silu": lambda v, lo, hi: v * _sigmoid(v),
    "sigmoid": lambda v, lo, hi: _sigmoid(v),
    "hardswish": lambda v, lo, hi: v * _hardsigmoid(v),
    "hardsigmoid": lambda v, lo, hi: _hardsigmoid(v),
    "gelu": lambda v, lo, hi: _gelu(v, "none"),
    "gelu_tanh": lambda v, lo, hi: _gelu(v, "tanh"),
    "tanh": lambda v, lo, hi: np.tanh(v),
}


def problem(
    rng: np.random.Generator,
    channels: int,
    inputs: int,
    size: tuple[int, int],
    *,
    density: float = 0.3,
    kernel: int = 1,
    pad: int = 1,
    block: int = 1,
    tiled: bool = True,
    residual: bool = False,
    activation: str = "clamp",
    tile: int = 64,
) -> Problem:
    """A random problem whose zeros come in groups of ``block`` output rows; some rows are empty."""
    shape = (channels, inputs, kernel, kernel)
    keep = np.repeat(rng.random((-(-channels // block), *shape[1:])) < density, block, axis=0)[:channels]
    lo, hi = sorted(rng.uniform(-2, 2, 2)) if activation == "clamp" else (-np.inf, np.inf)
    return Problem(
        weight=(rng.standard_normal(shape) * keep).astype(np.float32),
        bias=rng.standard_normal(channels).astype(np.float32),
        x=rng.standard_normal((inputs, *size)).astype(np.float32),
        residual=rng.standard_normal((channels, *size)).astype(np.float32) if residual else None,
        geometry=Geometry(*size, max(pad, kernel // 2), tile),
        tiled=tiled and kernel == 1,
        activation=activation,
        lo=float(np.float32(lo)),
        hi=float(np.float32(hi)),
    )
