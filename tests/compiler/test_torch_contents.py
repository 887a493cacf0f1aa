"""The bytes of weights: what one call notices, what some calls notice together, and what that leaves alone."""

import copy
import io
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsec.doors.torch_compile import contents as torch_contents
from sparsec.doors.torch_compile import stamps
from sparsec.doors.torch_compile.contents import Contents, Fingerprint
from tests.compiler.stand_in import Small, agrees, compiled, images

SHAPES = [(64, 300), (300,), (1,), (5, 3, 3, 3), (0, 4), (40000,)]
DTYPES = [torch.float32, torch.float64, torch.int8, torch.bfloat16]


def weights() -> list[torch.Tensor]:
    return [torch.rand(shape).add(0.5).mul(100).to(dtype) for shape in SHAPES for dtype in DTYPES]


def noticed_after(held: Contents) -> int:
    """The calls until a change is seen."""
    return next((n for n in range(1, 2 * held.calls + 2) if not held.seem_same()), 0)


def test_nothing_is_noticed_where_nothing_was_written():
    given = weights()
    held = Contents(given)
    assert held.are_same()
    assert noticed_after(held) == 0


@given(st.integers(0, len(SHAPES) * len(DTYPES) - 1), st.floats(0, 1))
def test_a_write_to_one_element_is_noticed_within_so_many_calls(which, where):
    given = weights()
    held, flat = Contents(given), given[which].view(-1)
    if not flat.numel():
        return
    flat[math.floor(where * (flat.numel() - 1))] = -3
    assert not held.are_same()
    assert 1 <= noticed_after(held) <= held.calls


@pytest.mark.parametrize("layout", [lambda w: w.t(), lambda w: w[::2, 1::3], lambda w: w[1:, 1:], lambda w: w[:1].expand(5, -1)])
def test_a_write_to_a_view_is_noticed(layout):
    base = torch.rand(32, 40)
    view = layout(base)
    held = Contents([view])
    view[-1, -1] += 1
    assert not held.are_same()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_write_to_a_share_of_the_nonzeros_of_a_pruned_network_is_noticed_at_once(share):
    """Of 30 layers with 12 samples, half of them at nonzero places: missed with a probability of (1 - share)^180."""
    layers = [torch.rand(256, 256) * (torch.rand(256, 256) < 0.1) for _ in range(30)]
    held = Contents(layers)
    for layer in layers:
        layer.mul_(torch.rand(256, 256) >= share)
    assert not held.seem_same()


@given(st.integers(2, 4096), st.floats(0, 1), st.sampled_from([0, 0.1, 0.5]))
def test_a_write_to_all_nonzeros_of_a_small_weight_is_noticed_at_once(count, where, share):
    weight = (torch.rand(count) < share) * torch.randn(count)
    weight[math.floor(where * (count - 1))] = 1
    held = Contents([weight])
    weight.mul_(3)
    assert not held.seem_same()


def test_the_slices_cover_every_byte_once_and_are_bounded():
    given = weights()
    places = [stamps.stretch(*piece) for piece in Contents(given).samples.pieces.tolist()]
    whole = [stamps.stretch(weight.data_ptr(), weight.nbytes) for weight in given]
    covered, wanted = (np.concatenate([np.arange(place.start, place.stop) for place in some]) for some in (places, whole))
    assert np.array_equal(np.sort(covered), np.sort(wanted))
    assert max(place.stop - place.start for place in places) <= torch_contents._MOST
    assert stamps.read_stretch(whole[0]) == given[0].numpy().tobytes()


def test_memory_that_was_given_back_is_not_read():
    weight = torch.rand(1000)
    weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="given back"):
        Contents([weight])


@pytest.mark.parametrize("check", ["sampled", "full", "versions"])
def test_a_fingerprint_is_of_memory_versions_and_bytes(check):
    weight = torch.rand(100, 300)
    made = Fingerprint([weight], check)
    assert made.holds([weight])
    assert not made.holds([weight.clone()])
    weight.data[50, 7] += 1
    assert check != "full" or not made.holds([weight])
    assert all(made.holds([weight]) for _ in range(weight.nbytes // torch_contents._LEAST + 1)) == (check == "versions")
    weight.add_(1)
    assert not made.holds([weight])


def options(check: str) -> dict:
    return {"check_weights": check}


def test_all_bytes_are_checked_where_that_is_asked_for(driver):
    model, x = nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 4)).eval(), torch.randn(2, 200)
    fast = torch.compile(model, backend="sparse", options=options("full"))
    for row in range(4):
        agrees(fast, model, x)
        model[0].weight.data[row * 70, 11] += 5
    agrees(fast, model, x)


@pytest.mark.slow
def test_one_element_is_noticed_by_another_size_and_graph_too(driver):
    """An entry that sees a write outdates all that were made of the same weights."""
    model = Small().eval()
    fast, sizes = compiled(model), (2, 3)
    for size in sizes:
        agrees(fast, model, images(size))
    model.convolution.weight.data.neg_()
    for size in sizes:
        agrees(fast, model, images(size))


def test_a_model_that_was_compiled_can_be_copied_saved_and_swapped(driver):
    model, x = Small().eval(), images()
    agrees(compiled(model), model, x)
    twin = copy.deepcopy(model)
    for save, options in ((model, {"weights_only": False}), (dict(model.state_dict(keep_vars=True)), {"weights_only": True})):
        file = io.BytesIO()
        torch.save(save, file)
        file.seek(0)
        loaded = torch.load(file, **options)
        if isinstance(loaded, nn.Module):
            agrees(compiled(loaded), loaded, x)
    agrees(compiled(twin), twin, x)
    assert not any(weakref.getweakrefs(tensor) for tensor in (*model.parameters(), *model.buffers()))
