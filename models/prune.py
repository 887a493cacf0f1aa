"""Magnitude pruning of a model in place, BatchNorm calibration after it, and sparse parameter layouts."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparsec.models.errors import InvalidArgument
from sparsec.models.patterns import keep_mask, parse_pattern, resolve_sparsity

M = TypeVar("M", bound=nn.Module)
Layer = nn.Conv2d | nn.Linear
Skip = Callable[[str, nn.Module], bool]

STEM_CHANNELS = 3
LAYOUTS = ("csr", "csc", "bsr", "coo")


def skip_stem_and_depthwise(name: str, module: nn.Module) -> bool:
    """True for grouped (so depthwise) convolutions and for those that read an image of at most 3 channels."""
    return isinstance(module, nn.Conv2d) and (module.groups > 1 or module.in_channels <= STEM_CHANNELS)


def prunable_layers(model: nn.Module, skip: Skip = skip_stem_and_depthwise, classifier: bool = False) -> dict[str, Layer]:
    """The layers that `prune` would touch, by name. See there."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    spared = set() if classifier else set(linear[-1:])
    return {name: module for name, module in layers.items() if name not in spared and not skip(name, module)}


def prune(
    model: M,
    sparsity: float | None,
    pattern: str = "unstructured",
    skip: Skip = skip_stem_and_depthwise,
    classifier: bool = False,
) -> M:
    """Set the smallest weights of each convolution and linear layer to zero, in place; returns `model`.

    `sparsity` is the share of zeros per layer, 0 to 1. `pattern` is "unstructured", a block of outputs x inputs such
    as "8x1" (inputs and kernel taps flattened), or N:M such as "2:4", which decides the sparsity itself (give None or
    an equal one). Layers for which `skip(name, module)` holds stay dense; so does the final classifier, the last
    `nn.Linear` of the model, unless `classifier` is true. Raises InvalidArgument (a ValueError) for a bad sparsity or pattern, for a model
    with nothing to prune, and for a weight that is not a plain dense parameter.
    """
    parsed = parse_pattern(pattern)
    share = resolve_sparsity(parsed, sparsity)
    layers = prunable_layers(model, skip, classifier)
    if not layers:
        raise InvalidArgument(
            f"Nothing to prune in {type(model).__name__}.",
            why="every convolution and linear layer is skipped; the last linear layer counts as the classifier",
            hint="pass classifier=True to prune the classifier, or another skip",
        )
    weights = [_dense_parameter(name, layer) for name, layer in layers.items()]
    with torch.no_grad():
        for weight in weights:
            weight.masked_fill_(~keep_mask(weight, share, parsed), 0.0)
    return model


def _dense_parameter(name: str, layer: Layer) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, nn.Parameter) or weight.layout != torch.strided:
        raise InvalidArgument(
            "Cannot prune a weight that is not a plain dense parameter.",
            where=name or type(layer).__name__,
            why="it is computed (parametrized or pruned by torch.nn.utils.prune) or stored in a sparse layout",
            hint="remove the parametrization or convert the weight to dense first",
        )
    return weight


def calibrate_batchnorm(model: M, batches: Iterable[Tensor]) -> M:
    """Re-estimate the running statistics of every BatchNorm from `batches`; returns `model` in evaluation mode.

    Statistics are reset and become the plain average over batches; all other layers (dropout) run as in evaluation.
    Pruning shifts what a network's layers see, so do this after it. InvalidArgument where there is no batch.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    seen = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in batches:
                model(batch)
                seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    if not seen:
        raise InvalidArgument(
            "BatchNorm calibration got no batch.",
            why="the statistics were reset and there is nothing to estimate them from",
            hint="pass a list of batches and calibrate again; an exhausted iterator counts as empty",
        )
    return model


def as_sparse_parameters(model: M, layout: str, block: int = 4) -> M:
    """Store the weights of linear layers as sparse tensors, in place; returns `model`, which computes the same.

    `layout` is "csr", "csc", "coo" or "bsr" (square blocks of `block`, the only ones torch multiplies on the CPU). A
    layer that `block` does not divide stays dense. Torch 2.13 refuses COO weights where the layer has a bias and a
    2-D input. InvalidArgument for another layout or a block below 1.
    """
    if layout not in LAYOUTS:
        raise InvalidArgument(f"Unknown sparse layout {layout!r}.", hint=f"use one of {', '.join(LAYOUTS)}")
    if block < 1:
        raise InvalidArgument(f"The side of a block must be positive, got {block}.")
    for module in model.modules():
        if isinstance(module, nn.Linear) and not (layout == "bsr" and any(n % block for n in module.weight.shape)):
            module.weight = nn.Parameter(_to_layout(module.weight.detach(), layout, block))
    return model


def _to_layout(weight: Tensor, layout: str, block: int) -> Tensor:
    if layout == "bsr":
        return weight.to_sparse_bsr((block, block))
    return {"csr": weight.to_sparse_csr, "csc": weight.to_sparse_csc, "coo": weight.to_sparse_coo}[layout]()
