"""torch.compile(backend="sparse") on published architectures with their heads: as eager, for two sizes and after new weights."""

import pytest
import torch

from tests.models.heads.agreement import disagreement
from tests.models.heads.case import SEED
from tests.models.heads.table import CASES, SHARD, today

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
#: Models of several regions with a dense rest, for the compiler that takes the rest.
MIXED = ("RoFormerForMaskedLM", "CLIPModel", "densenet121")


@pytest.mark.parametrize("name", today(75))
def test_torch_compile_answers_as_eager(plain, faults, kernels, record_property, name):
    record_property("SPARSEC_SHARD", SHARD)
    agrees(name, kernels)
    assert not faults


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.turns(3)
def test_torch_compile_answers_as_eager_with_inductor(lean, faults, kernels, name):
    agrees(name, kernels)
    assert not faults


def agrees(name, kernels):
    case = CASES[name]
    model, calls = case.model(), case.calls()
    fast = torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})
    with torch.no_grad():
        for keywords in calls:
            assert not disagreement(fast(**keywords), model, keywords)
        model.load_state_dict(case.model(SEED + 1).state_dict())
        assert not disagreement(fast(**keywords), model, keywords), "after new weights"
