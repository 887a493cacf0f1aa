"""sparsec.compile on published architectures with their heads: what eager says, in the structure in which eager says it."""

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

import sparsec
from sparsec.errors import InvalidInput, UnsupportedModel
from tests.models.heads.agreement import disagreement, eager
from tests.models.heads.table import CASES, SHARD, today

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", today(30))
def test_an_object_answers_as_eager(plain, faults, kernels, record_property, name):
    record_property("SPARSEC_SHARD", SHARD)
    case = CASES[name]
    model, (first, second) = case.model(), case.calls()
    try:
        fast = sparsec.compile(model, (), first, threads=1, cache_dir=kernels)
    except UnsupportedModel as error:
        pytest.skip(excuse(error, model, first))
    assert not disagreement(fast(**first), model, first)
    try:
        found = fast(**second)
    except InvalidInput:
        found = eager(model, second)
    assert not disagreement(found, model, second)
    assert not faults


def excuse(error, model, keywords):
    """Why a refusal is right: export refuses too, or its graph has numbers that depend on values. AssertionError if it is not."""
    try:
        with torch.no_grad():
            program = torch.export.export(model, (), dict(keywords), strict=False)
    except Exception:
        return f"torch.export refuses it: {error.why}"
    assert any(free_unbacked_symbols(node.meta["val"]) for node in program.graph.nodes if node.meta.get("val") is not None), error
    assert "depends on values" in str(error), error
    return f"a size depends on values: {error.why}"
