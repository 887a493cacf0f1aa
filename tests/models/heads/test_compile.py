"""sparsec.compile on published architectures with their heads: what eager says, in the structure in which eager says it."""

import pytest
import torch

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
        if "depends on values" in str(error):
            pytest.skip(f"a size depends on values: {error.why}")
        with pytest.raises(Exception), torch.no_grad():  # noqa: B017
            torch.export.export(model, (), dict(first), strict=False)
        pytest.skip(f"torch.export refuses it: {error.why}")
    assert not disagreement(fast(**first), model, first)
    try:
        found = fast(**second)
    except InvalidInput:
        found = eager(model, second)
    assert not disagreement(found, model, second)
    assert not faults
