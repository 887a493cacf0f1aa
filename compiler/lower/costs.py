"""What a machine's kernels cost, as far as passes choose by it: plain numbers with units, from a backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """The defaults are those of one core of a CPU with AVX512.

    convert, turned_read: seconds for each byte of a map, of a copy to another layout and of a product that reads it in the layout that it
        does not prefer; only their ratio counts.
    joined_bytes: a depthwise convolution is joined with the 1x1 convolution that reads it where the value between them has more bytes.
    unstructured, blocked: speed of kernels that skip single zeros, and whole blocks of outputs, relative to a dense one for each
        multiplication done.
    pointwise, spatial, depthwise, tokens, attention: seconds of a dense kernel for each multiplication of a layer, relative to a dense
        product of the dense compiler: 1x1 and k x k convolutions, depthwise ones, linear layers over tokens, attention.
    their_depthwise, their_attention: the same of the dense compiler.
    edges: gain below which a region that is not the whole graph does not pay for the conversions at its edges.
    """

    # Relative to streaming one byte: a conversion reads and writes; a 1x1 convolution over halo rows loses some cache locality.
    convert: float = 2.0
    turned_read: float = 0.3
    joined_bytes: int = 512 * 1024
    # Over the 1x1 layers of MobileNetV1 on one core, skipping single zeros breaks even at 60% nonzero.
    unstructured: float = 0.6
    blocked: float = 0.9
    # Our dense products pay for pad pixels and tails of tiles, the dense compiler's depthwise convolutions for short loops; over tokens it
    # is slower than ours. Measured on unpruned MobileNetV1, V2, ResNet-50, BERT-base and ViT-S against Inductor with freezing.
    pointwise: float = 1.08
    spatial: float = 1.12
    depthwise: float = 2.0
    their_depthwise: float = 5.0
    tokens: float = 0.85
    attention: float = 1.0
    their_attention: float = 1.4
    edges: float = 1.15
