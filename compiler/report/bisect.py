"""Which pass changes the answer: prefixes of a pipeline, compared with the graph they start from."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sparsec.ir.pipeline import Context, Pass, run


def bisect(
    graph_module: fx.GraphModule,
    inputs: Sequence[Tensor],
    passes: Sequence[Pass],
    context: Context,
    tolerance: float = 1e-4,
) -> Pass | None:
    """The first pass whose prefix of `passes` fails or changes an output, or None.

    An output counts as changed where it differs by more than `tolerance` times its greatest magnitude (0: at all), or
    where only one of the two is NaN. Prefixes are tried in order: a later pass may hide what an earlier one broke.
    """
    settings = dataclasses.replace(context.settings, stop_after=None, dump_dir=None)
    quiet = dataclasses.replace(context, settings=settings)
    expected = _outputs(graph_module, inputs)
    for count, last in enumerate(passes, start=1):
        try:
            found = _outputs(run(graph_module, passes[:count], quiet).graph_module, inputs)
        except Exception:
            return last
        if any(differs(a, b, tolerance) for a, b in zip(expected, found, strict=True)):
            return last
    return None


def _outputs(graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        results = tree_leaves(graph_module(*(tensor.clone() for tensor in inputs)))
    return [result for result in results if isinstance(result, Tensor)]


def differs(expected: Tensor, found: Tensor, tolerance: float) -> bool:
    """Whether `found` is another answer than `expected`; equal infinities and NaN in both are no difference."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return True
    scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0
    return not torch.allclose(found.double(), expected.double(), rtol=0, atol=tolerance * scale, equal_nan=True)
