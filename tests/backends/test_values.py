"""Values between all storages under all views, element by element: which element lies where, and what moves it there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from sparsec.backends import lowering, plan
from sparsec.backends.cpu import moves
from sparsec.backends.plan import Buffer
from sparsec.backends.values import Value, lies_as
from sparsec.backends.x86.backend import X86
from sparsec.lower.describe import spec_of
from sparsec.lower.layouts import Geometry, Storage, dense
from sparsec.lower.spec import KernelSpec
from sparsec.run.affine import Affine
from tests.backends.cpu.kernel_call import At, Call, Kernels, from_halo, from_tiled
from tests.machines import MACHINES

aten = torch.ops.aten
Shape = tuple[int, ...]

VECTORS = [(1,), (2,), (17,), (51,)]
MAPS = [(c, h, w) for c in (1, 17) for h, w in ((1, 1), (1, 3), (3, 1), (2, 17), (17, 2), (8, 16))]
TOKENS = [*itertools.product((1, 2, 17), (1, 3, 16)), (64, 2), (70, 3)]
SHAPES = [*VECTORS, *MAPS, *TOKENS]


def storages(shape: Shape) -> list[Storage]:
    """All that a value of a shape may be stored as."""
    if len(shape) == 1:
        return [dense(shape), Storage("token_major", 0, Geometry(1, shape[0], 0))]
    if len(shape) == 2:
        return [dense(shape), Storage("tiled", shape[1], Geometry(1, shape[0], 0, 64))]
    spaces = [Geometry(*shape[1:], pad, tile) for pad, tile in ((0, 64), (1, 32))]
    return [dense(shape), Storage("single", shape[0])] if shape[1:] == (1, 1) else _map_storages(shape, spaces)


def _map_storages(shape: Shape, spaces: list[Geometry]) -> list[Storage]:
    return [dense(shape), *(Storage(layout, shape[0], g) for layout in ("halo", "tiled") for g in spaces)]


def views(shape: Shape) -> Iterator[list[tuple[Any, tuple]]]:
    """Chains of view operators on a batch [2, *shape]: targets with their arguments."""
    rank, count = len(shape) + 1, int(np.prod(shape))
    yield []
    yield [(aten.flatten.using_ints, (1,))]
    yield [(aten.reshape.default, ([2, -1, 1, 1],))]
    yield [(aten.reshape.default, ([2, 1, -1],))]
    yield [(aten.reshape.default, ([2, shape[-1], -1],))]
    yield [(aten.squeeze.dim, (-1,))]
    yield [(aten.squeeze.default, ())]
    if rank < 4:
        yield [(aten.unsqueeze.default, (dim,)) for dim in (1,)]
        yield [(aten.unsqueeze.default, (-1,))]
    if rank == 4:
        yield [(aten.flatten.using_ints, (2,))]
        yield [(aten.flatten.using_ints, (1, 2))]
        yield [(aten.squeeze.dims, ([2, 3],))]
        yield [(aten.permute.default, ([0, 2, 3, 1],)), (aten.reshape.default, ([2, -1, shape[0]],))]
    if rank > 2:
        yield [(aten.transpose.int, (1, -1))]
        yield [(aten.transpose.int, (-1, -2)), (aten.flatten.using_ints, (1,))]
        yield [(aten.transpose.int, (-1, -2)), (aten.reshape.default, ([2, 1, count, 1],)), (aten.squeeze.dim, (-1,))]


def described(shape: Shape, chain: list[tuple[Any, tuple]]) -> tuple[list[KernelSpec], Tensor] | None:
    """The specs of a chain and what it makes of the numbers of one sample; None where a value in it is no region value."""
    graph, value = fx.Graph(), torch.arange(2.0 * np.prod(shape)).reshape(2, *shape)
    node = graph.placeholder("x")
    node.meta["val"] = value
    specs = []
    for target, args in chain:
        node = graph.call_function(target, (node, *args))
        node.meta["val"] = value = target(value, *args)
        if value.dim() < 2:
            return None
        spec = spec_of(node)
        assert isinstance(spec, KernelSpec), spec
        specs.append(spec)
    return specs, value[0]


class Move:
    """A value of some shape in one storage, seen through views, in another storage."""

    def __init__(self, have: Storage, shape: Shape, specs: list[KernelSpec], want: Storage, backend: X86) -> None:
        self.state = lowering._State(None, backend)  # type: ignore[arg-type]
        value = Value.whole(Buffer("x", have), shape)
        for spec in specs:
            value = value.viewed(spec.output, dict(spec.attributes).get("dims"))
        self.value, self.made = value, lowering._as(self.state, value, want)

    @property
    def calls(self) -> list[Any]:
        return [self.state.backend.move(step) for step in self.state.steps if isinstance(step, plan.Move)]

    def run(self, kernels: Kernels, source: np.ndarray) -> np.ndarray:
        """The memory of the result."""
        memory = {"x": source}
        for call in self.calls:
            for buffer in call.buffers.values():
                memory.setdefault(buffer.memory.name, _garbage(buffer.memory.storage))
            places: dict[str, Any] = {name: At(b.memory.name, b.storage.origin) for name, b in call.buffers.items()}
            memory |= kernels.run([Call(call.source, places | dict(call.constants) | dict(call.scalars))], memory, call.units)
        return memory[self.made.memory.name]


def _garbage(storage: Storage) -> np.ndarray:
    """What the arena gives: NaN, but zeros in the margins of halo rows."""
    if storage.layout != "halo":
        return np.full(storage.elements, np.nan, np.float32)
    out = np.zeros((storage.channels, storage.index_space.stride), np.float32)
    out[:, storage.index_space.front : storage.index_space.front + storage.index_space.pixels] = np.nan
    return out.reshape(-1)


def _stored(x: np.ndarray, storage: Storage) -> np.ndarray:
    out = _garbage(storage)
    if storage.layout == "halo":
        out = np.nan_to_num(out)
    out[storage.addresses(x.shape)] = x.reshape(-1)
    return out


def cases() -> list[tuple[Shape, list[KernelSpec], np.ndarray, Storage, Storage]]:
    """Every shape, every chain of views, every pair of storages."""
    found = []
    for shape in SHAPES:
        for chain in views(shape):
            made = described(shape, chain)
            if made is not None:
                specs, result = made
                pairs = itertools.product(storages(shape), storages(tuple(result.shape)))
                found += [(shape, specs, result.numpy(), have, want) for have, want in pairs]
    return found


CASES = cases()


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[list[Move], Kernels]:
    backend = X86(request.param)
    made = [Move(have, shape, specs, want, backend) for shape, specs, _, have, want in CASES]
    return made, Kernels([call.source for move in made for call in move.calls], request.param)


def test_every_view_between_every_two_storages(built) -> None:
    made, kernels = built
    for (shape, specs, result, have, want), move in zip(CASES, made, strict=True):
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        memory = move.run(kernels, _stored(x, have)).reshape(-1)
        case = f"{shape} {[s.op for s in specs]} {result.shape} {have} {want}"
        np.testing.assert_array_equal(memory[want.addresses(result.shape)], result.reshape(-1), case)
        if want.layout == "halo":
            np.testing.assert_array_equal(memory, _stored(result, want), case)


def test_what_lies_the_same_is_not_moved() -> None:
    assert len(CASES) > 1000
    backend = X86()
    for shape, specs, result, have, want in CASES:
        move = Move(have, shape, specs, want, backend)
        same = want.layout != "halo" and np.array_equal(move.value.places, want.addresses(result.shape)) and want.elements <= have.elements
        assert (not move.calls) == (same or (have == want and move.value.is_whole))


@pytest.mark.parametrize("most", [1, 2, 15, 16, 17, 32, 48, 64])
@pytest.mark.parametrize("features", [1, 2, 16])
def test_what_lies_the_same_for_the_most_tokens_does_for_fewer(most: int, features: int) -> None:
    def layouts(tokens: int) -> list[Storage]:
        tiled = [Storage("tiled", features, Geometry(1, tokens, 0, tile, Affine("t"))) for tile in (16, 32, 64)]
        return [Storage("token_major", features, Geometry(1, tokens, 0, follows=Affine("t"))), *tiled]

    for first, second in itertools.product(range(4), repeat=2):
        have, want = layouts(most)[first], layouts(most)[second]
        if lies_as(Value.whole(Buffer("x", have), (most, features)), want):
            for tokens in range(1, most + 1):
                here, there = layouts(tokens)[first], layouts(tokens)[second]
                assert there.elements <= here.elements
                assert np.array_equal(here.addresses((tokens, features)), there.addresses((tokens, features)))


@pytest.mark.parametrize("shape", SHAPES)
def test_moves_that_kept_their_kernels(shape: Shape) -> None:
    """Copies of rows serve wherever the elements keep their order."""
    backend = X86()
    for have, want in itertools.product(storages(shape), repeat=2):
        if (
            have.geometry is None
            or want.geometry is None
            or have.index_space.pad == want.index_space.pad
            or "nchw" in (have.layout, want.layout)
        ):
            calls = Move(have, shape, [], want, backend).calls
            assert not any("permute" in call.source.symbol for call in calls)
            assert len(calls) <= 2


def test_a_value_of_one_shape_has_kernels_of_its_own() -> None:
    halo, tiled = (Storage(layout, 3, Geometry(4, 4, 1)) for layout in ("halo", "tiled"))
    covers = partial(moves.covers, dtypes=("float32", "float16"))
    assert covers(halo, tiled, (3, 4, 4)) and covers(dense((3, 4, 4)), halo, (3, 4, 4))
    assert not covers(dense((3, 4, 4)), tiled, (3, 4, 4))
    assert not covers(halo, Storage("halo", 3, Geometry(4, 4, 2)), (3, 4, 4))
    assert covers(dense((3,), "float16"), dense((3,), "float16"), (3,))
    assert not covers(dense((3,)), dense((3,), "float16"), (3,))
    assert not any(covers(dense((3,), kind), dense((3,), "int64"), (3,)) for kind in ("float32", "int64"))
    assert not covers(dense((12,)), halo, (12, 4))


@pytest.mark.parametrize("layout", ["halo", "tiled"])
@pytest.mark.parametrize("pad", [0, 2])
def test_addresses_are_where_kernels_write(layout: Any, pad: int) -> None:
    g = Geometry(5, 9, pad, 32)
    storage = Storage(layout, 3, g)
    x = np.arange(135, dtype=np.float32).reshape(3, 5, 9)
    memory = _stored(x, storage)
    read = from_halo(memory.reshape(3, -1), g) if layout == "halo" else from_tiled(memory.reshape(g.tiles, 3, -1), g)
    np.testing.assert_array_equal(read, x)
    tokens = Storage("tiled", 3, Geometry(1, 45, 0, 32))
    np.testing.assert_array_equal(
        tokens.addresses((45, 3)), Storage("tiled", 3, tokens.index_space).addresses((3, 1, 45)).reshape(3, 45).T.ravel()
    )
    with pytest.raises(ValueError, match="does not hold"):
        storage.addresses((45, 3))
