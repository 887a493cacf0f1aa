"""What a user hears where torch.export does not take a model, and what not: its noise."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import Tensor, nn

import sparsec
from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel

X = torch.randn(2, 16)


def compiled(model: nn.Module, *given: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return sparsec.compile(model.eval(), *given, threads=1, **options)


def two() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))


@pytest.mark.parametrize("several", [False, True])
def test_attached_masks_are_compiled_without_a_warning(several: bool) -> None:
    model = two()
    for layer in (model[0], model[2])[: 1 + several]:
        masks.l1_unstructured(layer, "weight", 0.9)
        masks.random_unstructured(layer, "bias", 0.5)
    torch.testing.assert_close(compiled(model, (X,))(X), model(X).detach(), rtol=1e-5, atol=1e-6)


class Remembers(nn.Module):
    """Keeps its last result, which no program does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(16, 16), torch.zeros(1)
        masks.l1_unstructured(self.layer, "weight", 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        return self.last + 1


def test_other_attributes_that_a_call_assigns_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"self\.last, .* assigned during export"), torch.no_grad():
        sparsec.compile(Remembers().eval(), (X,), threads=1)


@pytest.mark.parametrize(("batch", "axis"), [(1, 0), (2, 1)])
def test_an_axis_that_cannot_be_free(batch: int, axis: int) -> None:
    with pytest.raises(InvalidInput, match="is fixed by the model or by the example") as error:
        compiled(two(), (torch.randn(batch, 16),), dynamic_shapes=({axis: torch.export.Dim("n")},))
    assert "2 or more on each free axis" in str(error.value) and "control flow" not in str(error.value)


@pytest.mark.parametrize("given", [(torch.randn(2, 15),), (X.numpy(), X), ()], ids=["width", "number", "none"])
def test_what_the_model_itself_refuses(given: tuple, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SparsecError) as error:
        compiled(two(), given)
    assert "control flow" not in str(error.value) and "it has to run" in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_control_flow_on_values_is_named() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(UnsupportedModel, match="Remove control flow"):
        compiled(Branches(), (X,))


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        ((X, X), {}, "Positional arguments: compiled for 1, got 2"),
        ((), {}, "Positional arguments: compiled for 1, got 0"),
        (((X,),), {}, "Argument 0: compiled for a value, got (a value)"),
        (([X, {"k": X}],), {}, "got [a value, {'k': a value}]"),
        ((X,), {"mask": X}, "Keyword arguments: compiled for none, got mask"),
        ((None,), {}, "A tensor is expected, got NoneType"),
    ],
)
def test_calls_with_other_arguments_are_told_in_plain_words(given: tuple, named: dict, said: str) -> None:
    fast = compiled(two(), (X,))
    with pytest.raises(InvalidInput) as error:
        fast(*given, **named)
    assert said in str(error.value) and "TreeSpec" not in str(error.value)


def test_an_input_that_requires_a_gradient_is_refused_and_serves_without() -> None:
    model, x = two().eval(), X.clone().requires_grad_(True)
    fast = compiled(model, (X,))
    with pytest.raises(InvalidInput, match="requires a gradient"):
        fast(x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast(x.detach()), model(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_is_left_to_torch_with_a_warning(without_inductor: None, dtype: torch.dtype) -> None:
    model, x = two().eval().to(dtype), X.to(dtype)
    with pytest.warns(RuntimeWarning, match=rf"No kernel of sparsec .* is {dtype}, kernels compute in float32"):
        fast = sparsec.compile(model, (x,), threads=1)
    torch.testing.assert_close(fast(x), model(x).detach())


def test_an_object_says_what_it_is() -> None:
    assert repr(compiled(two(), (X,))).startswith("CompiledModel(input_1 [2, 16] torch.float32; 2 layers: ")
