"""The torch.compile door: many calls, and weights that change between them, take no more memory."""

import ctypes
import gc
import resource

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow


def held() -> float:
    """MiB that the process holds now; free memory goes back to the system first, where the C library can."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def test_twenty_thousand_calls_are_flat_in_memory(strict, kernels):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 64, 1)).eval(), torch.randn(1, 3, 8, 8)
    sizes = []
    with torch.no_grad():
        model[2].weight.mul_(torch.rand_like(model[2].weight) < 0.2)
        fast, want = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels}), model(x)
        for _ in range(10):
            for _ in range(2000):
                got = fast(x)
            sizes.append(held())
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert sizes[-1] - sizes[0] < 8


def test_forty_new_weights_are_flat_in_memory(strict, kernels):
    """Each time 4 MiB, of which nothing is kept."""
    model, x = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 4)).eval(), torch.randn(2, 1024)
    sizes = []
    with torch.no_grad():
        model[0].weight.mul_(torch.rand_like(model[0].weight) < 0.02)
        fast = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})
        for step in range(40):
            if step % 2:
                model[0].weight.data.mul_(-1)
            else:
                model[0].weight = nn.Parameter(model[0].weight * 1.001)
            for _ in range(2):
                torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-4)
            sizes += [held()] if step in (15, 39) else []
    assert sizes[1] - sizes[0] < 64
