"""Collections of garbage while a model is compiled."""

import gc
import weakref

import pytest
import torch
from torch import nn

import sparsec
from sparsec.run.heap import older_objects_aside


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_older_is_left_aside_and_garbage_made_since_is_collected() -> None:
    older = weakref.ref(_Cycle())
    with older_objects_aside():
        younger = weakref.ref(_Cycle())
        gc.collect()
        assert younger() is None
        assert older() is not None
    gc.collect()
    assert older() is None


def test_it_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), older_objects_aside():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


def test_objects_that_somebody_froze_stay_so() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with older_objects_aside():
            # Those that nobody uses any more are gone, frozen or not.
            assert gc.get_freeze_count() > frozen // 2
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("training", [False, True], ids=["compiled", "refused"])
def test_compiling_leaves_nothing_frozen(training: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).train(training)
    if training:
        with pytest.raises(sparsec.SparsecError):
            sparsec.compile(model, torch.randn(2, 8))
    else:
        sparsec.compile(model, torch.randn(2, 8), tune="off")
    assert gc.get_freeze_count() == 0
