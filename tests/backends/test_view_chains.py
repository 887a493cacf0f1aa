"""Views of all kinds between layers: every region of such a network gives what eager float64 gives."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from sparsec.backends.lowering import draft, lower
from sparsec.backends.x86.backend import X86
from sparsec.doors.from_torch.capture import capture
from sparsec.lower.regions import covers
from tests import convnets
from tests.view_chains import chain

FAST, SLOW = range(10), range(100, 130)


class _Values(fx.Interpreter):
    """Runs a graph in float64 and keeps what every node gives."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(copy.deepcopy(graph_module).double())
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            self.values[n.name] = found
        return found


def check(seeds, tmp_path: Path) -> int:
    """Compare all regions of the networks; how many networks are one region."""
    backend, parts = X86(), []
    for seed in seeds:
        model, x = chain(seed)
        result, regions = convnets.grouped(capture(model, (x,)).graph_module, backend)
        wanted = _Values(result.graph_module)
        wanted.run(x.double())
        torch.testing.assert_close(list(wanted.values.values())[-1], model.double()(x.double()))
        parts += [(model, wanted.values, convnets.Part(seed, region, lower(draft(region, backend), backend), result)) for region in regions]
    kernels = convnets.sources_of([part.lowered for *_, part in parts])
    library = backend.build(kernels, tmp_path)
    for model, wanted, part in parts:
        found = part.runner(kernels, library)(*(np.ascontiguousarray(wanted[n.name].float()) for n in part.region.inputs))
        for node, array in zip(part.region.outputs, found, strict=True):
            limit = 2e-5 * max(float(wanted[node.name].abs().max()), 1e-3)
            np.testing.assert_allclose(array, wanted[node.name].numpy(), rtol=0, atol=limit, err_msg=f"seed {part.seed}: {model}")
    return sum(covers(part.region, part.result.graph_module) for *_, part in parts)


@pytest.mark.slow
def test_views_between_layers(tmp_path):
    assert check(FAST, tmp_path) >= len(FAST) // 2


@pytest.mark.slow
def test_many_views_between_layers(tmp_path):
    assert check(SLOW, tmp_path) >= len(SLOW) // 2
