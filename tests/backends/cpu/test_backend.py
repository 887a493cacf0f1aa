"""What the x86 backend offers, refuses and lowers to."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsec.backends.cpu.families import DEPTHWISE, FAMILIES
from sparsec.backends.cpu.matvec_calls import vector_matrix
from sparsec.backends.family import choose
from sparsec.backends.x86.backend import X86
from sparsec.ir.miss import Miss
from sparsec.lower.spec import KernelSpec

BACKEND = X86()


def conv(inputs: tuple[int, ...], outputs: int, kernel: int, stride=1, padding=None, groups=1, dilation=1) -> KernelSpec:
    """A square convolution, same-padded where not told otherwise."""
    padding = dilation * (kernel - 1) // 2 if padding is None else padding
    size = tuple((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in inputs[1:])
    pairs = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (dilation,) * 2, "groups": groups}
    weights = ((outputs, inputs[0] // groups, kernel, kernel), None)
    return KernelSpec("conv2d", (inputs,), (outputs, *size), weights, attributes=tuple(sorted(pairs.items())))


OFFERED = {
    "1x1": conv((8, 7, 7), 16, 1),
    "3x3": conv((8, 7, 7), 16, 3),
    "7x7 stride 2": conv((3, 9, 5), 16, 7, 2),
    "strided 1x1": conv((8, 7, 7), 16, 1, 2),
    "dilated": conv((8, 7, 7), 16, 3, dilation=2),
    "grouped": conv((8, 7, 7), 16, 3, groups=4),
    "depthwise": conv((8, 7, 7), 8, 5, 2, groups=8),
    "two filters per channel": conv((8, 7, 7), 16, 3, 2, groups=8),
    "depthwise 1x1": conv((8, 7, 7), 8, 1, groups=8),
    "depthwise dilated": conv((8, 7, 7), 8, 3, groups=8, dilation=2),
    "even kernel": conv((8, 8, 8), 16, 2, 2, 0),
    "one pixel": conv((8, 1, 1), 16, 3),
}
REFUSED = {
    "same padding": conv((8, 7, 7), 16, 3, padding=0),
    "to a single pixel": conv((8, 2, 2), 16, 3, 2),
    "depthwise 1x1 with stride": conv((8, 7, 7), 8, 1, 2, groups=8),
    "kernels exist for same padding": conv((8, 66, 66), 16, 33, 33),
    "float16": KernelSpec("add", ((8,), (8,)), (8,), dtype="float16"),
    "a linear layer on a map": KernelSpec("linear", ((8, 2, 2),), (8, 2, 4), ((4, 2), None)),
    "to or from a single pixel": KernelSpec("max_pool2d", ((8, 2, 2),), (8, 1, 1)),
    "pooling of a single pixel": KernelSpec("global_avg_pool", ((8, 1, 1),), (8,)),
}


@pytest.mark.parametrize("name", OFFERED)
def test_offered(name):
    assert BACKEND.offers(OFFERED[name]) is None


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_with_a_reason(reason):
    refusal = BACKEND.offers(REFUSED[reason])
    assert isinstance(refusal, Miss)
    assert reason in refusal.reason


def pair(size: tuple[int, int], stride: int, padding: int) -> KernelSpec:
    """A depthwise 3x3 with a 1x1 behind it, fused."""
    alone = conv((8, *size), 8, 3, stride, padding, groups=8)
    attributes = tuple((k, v) for k, v in alone.attributes if k in ("stride", "padding"))
    weights = ((8, 1, 3, 3), None, (16, 8, 1, 1), None)
    return KernelSpec("depthwise_pointwise", alone.inputs, (16, *alone.output[1:]), weights, attributes=attributes)


def test_fused_pairs_are_offered_on_maps_only():
    assert BACKEND.offers(pair((7, 7), 2, 1)) is None
    assert "single pixel" in BACKEND.offers(pair((2, 2), 2, 1)).reason
    assert "same padding" in BACKEND.offers(pair((7, 7), 1, 0)).reason


def test_what_is_offered_as_depthwise_has_a_stencil():
    sizes = itertools.product((1, 3, 5, 7, 9), (1, 2, 3), (1, 2))
    specs = [conv((8, 20, 20), 8, kernel, stride, groups=8, dilation=dilation) for kernel, stride, dilation in sizes]
    stencils = [s for s in specs if choose(FAMILIES, s) is DEPTHWISE]
    assert {(s.weights[0][2], s["stride"][0]) for s in stencils} == set(itertools.product((3, 5, 7), (1, 2)))
    assert not any(s["dilation"] != (1, 1) for s in stencils)


@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(1, 0, 1), (3, 1, 1), (5, 2, 1), (3, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_convolution_of_one_pixel_is_a_matrix(kernel, padding, dilation, groups):
    generator = torch.Generator().manual_seed(kernel)
    x, weight = torch.randn(3, 6, 1, 1, generator=generator), torch.randn(12, 6 // groups, kernel, kernel, generator=generator)
    expected = F.conv2d(x, weight, None, 1, padding, dilation, groups)
    assert expected.shape[2:] == (1, 1)
    task = SimpleNamespace(weights=(weight.numpy(), None), spec=conv((6, 1, 1), 12, kernel, 1, padding, groups, dilation))
    matrix = vector_matrix(task)
    np.testing.assert_allclose(x[:, :, 0, 0].numpy() @ matrix.T, expected[:, :, 0, 0], rtol=1e-5, atol=1e-6)
