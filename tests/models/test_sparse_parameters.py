"""Linear weights stored in torch's sparse layouts compute what they computed dense."""

import pytest
import torch
from torch import nn

from sparsec.models.prune import as_sparse_parameters, prune

torch.set_num_threads(1)


def perceptron():
    torch.manual_seed(0)
    return prune(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)), 0.75, "4x4", classifier=True)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "coo"])
def test_same_outputs(layout):
    model, tokens = perceptron(), torch.randn(2, 5, 12)  # 3-D: the input torch takes in all four layouts
    with torch.no_grad():
        expected = model(tokens)
        actual = as_sparse_parameters(model, layout)(tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    layouts = {"csr": torch.sparse_csr, "csc": torch.sparse_csc, "bsr": torch.sparse_bsr, "coo": torch.sparse_coo}
    for layer in (model[0], model[2]):
        assert isinstance(layer.weight, nn.Parameter)
        assert layer.weight.layout == layouts[layout]


def test_blocks_that_do_not_divide_leave_the_layer_dense():
    model = as_sparse_parameters(perceptron(), "bsr", block=8)  # 16x12 does not divide, 8x16 does
    assert model[0].weight.layout == torch.strided
    assert model[2].weight.layout == torch.sparse_bsr


def test_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="csr, csc, bsr, coo"):
        as_sparse_parameters(perceptron(), "ellpack")
    with pytest.raises(ValueError, match="must be positive, got 0"):
        as_sparse_parameters(perceptron(), "bsr", block=0)


def test_pruning_a_sparse_parameter_is_refused():
    with pytest.raises(ValueError, match="not a plain dense parameter"):
        prune(as_sparse_parameters(perceptron(), "csr"), 0.5)
