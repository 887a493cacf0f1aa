"""Machine code for GPUs that are not here: every schedule, by what its instructions are."""

import pytest

from tests.backends.cuda.tools import needs_triton, told


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("name", "instruction"), [("a100", "HMMA"), ("h100", "HGMMA")])
def test_no_schedule_spills_and_products_are_those_of_tensor_cores(name: str, instruction: str) -> None:
    found = told("built", name)
    assert len({code["symbol"] for code in found}) == len(found) > 50
    for code in found:
        assert (code["stack"], code["spills"]) == (0, 0), code
        assert code["resident"] >= 1, code
        if code["product"]:
            assert (code[instruction] > 0) == code["tensor"], code
            assert not code["aligned"] or code["wide loads"], code
