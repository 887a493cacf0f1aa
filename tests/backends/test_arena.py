"""Arena planning: nothing alive overlaps, geometries keep apart, memory is used again."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsec.backends import arena
from sparsec.backends.base import Source
from sparsec.backends.plan import Buffer, Call, Group, Plan
from sparsec.lower.layouts import Geometry, Storage

GEOMETRIES = [Geometry(7, 7, 1), Geometry(7, 7, 2), Geometry(5, 9, 1), Geometry(14, 14, 1, 32), Geometry(14, 14, 0)]
#: Bytes of a number.
SIZES = {"float32": 4, "int64": 8, "int32": 4, "bool": 1, "bfloat16": 2, "int8": 1}
NOTHING = Source("nothing", (), lambda: None)


def call(*buffers: Buffer) -> Call:
    """A call that touches buffers, the last of which it writes."""
    named = {str(number): buffer for number, buffer in enumerate(buffers)}
    return Call(NOTHING, "node", "kind", named, (str(len(buffers) - 1),), {}, {}, 1, 0, 0)


def plan(*groups: tuple[Call, ...]) -> Plan:
    return Plan(tuple(Group(calls) for calls in groups), (), ())


def storages() -> st.SearchStrategy[Storage]:
    channels, spaces, dtypes = st.integers(1, 9), st.sampled_from(GEOMETRIES), st.sampled_from(list(SIZES))
    maps = st.builds(Storage, st.sampled_from(["halo", "tiled"]), channels, spaces, dtypes)
    rows = st.builds(lambda n, kind: Storage("token_major", 0, Geometry(1, n, 0), kind), st.integers(1, 300), dtypes)
    return st.one_of(maps, rows, st.builds(lambda n, kind: Storage("single", n, dtype=kind), st.integers(1, 300), dtypes))


def room(buffer: Buffer, threads: int) -> int:
    """Bytes that a buffer may touch: the last element's end, in each thread's slot."""
    if buffer.slot:
        return threads * -(-buffer.slot * SIZES[buffer.storage.dtype] // 64) * 64
    return buffer.storage.elements * SIZES[buffer.storage.dtype]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Buffers written in some group and read in later ones; a few are one per thread."""
    length = draw(st.integers(1, 8))
    touched: list[list[Buffer]] = [[] for _ in range(length)]
    for number in range(draw(st.integers(1, 14))):
        first = draw(st.integers(0, length - 1))
        last = draw(st.integers(first, min(length - 1, first + 3)))
        slot = draw(st.sampled_from([0, 0, 0, 40]))
        buffer = Buffer(f"b{number}", draw(storages()), slot=slot)
        for group in {first, last}:
            touched[group].append(buffer)
    return plan(*[(call(*buffers),) if buffers else () for buffers in touched])


@given(plans(), st.integers(1, 4))
def test_what_is_alive_at_once_never_overlaps(drawn, threads):
    spans = arena.lifetimes(drawn)
    offsets, total = arena.place(drawn, threads)
    assert set(offsets) == set(spans)
    placed = [(offsets[b], offsets[b] + room(b, threads), *spans[b]) for b in spans]
    for begin, end, _, _ in placed:
        assert 0 <= begin <= end <= total
        assert begin % 64 == 0
    for n, (begin, end, first, last) in enumerate(placed):
        for other_begin, other_end, other_first, other_last in placed[:n]:
            together = first <= other_last and other_first <= last
            assert not together or end <= other_begin or other_end <= begin


@given(plans())
def test_the_memory_of_a_halo_map_holds_rows_of_its_geometry_only(drawn):
    """Margins are zeroed once, so what one geometry leaves in them may never be another's pixels, at any time."""
    offsets, total = arena.place(drawn, 2)
    owner = np.full(total, -1)
    row = np.full(total, -1)
    for buffer, offset in offsets.items():
        halo = buffer.storage.layout == "halo" and not buffer.slot
        mine = 10 * GEOMETRIES.index(buffer.storage.index_space) + SIZES[buffer.storage.dtype] if halo else -2
        place = slice(offset, offset + room(buffer, 2))
        assert np.isin(owner[place], [-1, mine]).all()
        owner[place] = mine
        if halo:
            position = np.arange(place.stop - place.start) % (buffer.storage.index_space.stride * SIZES[buffer.storage.dtype])
            assert ((row[place] == -1) | (row[place] == position)).all()
            row[place] = position


def test_a_chain_uses_two_places_in_turn():
    space = Geometry(14, 14, 1)
    values = [Buffer(f"v{n}", Storage("halo", 8, space)) for n in range(6)]
    offsets, total = arena.place(plan(*[(call(a, b),) for a, b in itertools.pairwise(values)]), 1)
    assert total == 4 * 2 * 8 * space.stride
    assert len({offsets[v] for v in values}) == 2


def test_a_value_that_is_read_again_keeps_its_place():
    a, b, c = (Buffer(name, Storage("single", 64)) for name in "abc")
    offsets, total = arena.place(plan((call(a, b),), (call(b, c),), (call(c, a),)), 1)
    assert len(set(offsets.values())) == 3
    assert total == 4 * 3 * 64


def test_callers_tensors_take_no_room_and_slots_one_per_thread():
    port = Buffer("x", Storage("single", 64), ("input", 0))
    scratch = Buffer("s", Storage("single", 33), slot=33)
    offsets, total = arena.place(plan((call(port, scratch),)), 3)
    assert offsets == {scratch: 0}
    assert total == 4 * 3 * 48


def test_nothing_needs_nothing():
    assert arena.place(plan(), 1) == ({}, 0)


def test_memory_that_is_read_in_another_storage_stays():
    a, b, c, d = (Buffer(name, Storage("single", 64)) for name in "abcd")
    rows = a.read_as(Storage("token_major", 8, Geometry(1, 8, 0)))
    assert rows.memory is a and a.read_as(a.storage) is a
    offsets, total = arena.place(plan((call(b, a),), (call(b, c),), (call(c, d),), (call(rows, d),)), 1)
    assert set(offsets) == {a, b, c, d}
    assert total == 4 * 3 * 64
    assert offsets[a] not in (offsets[c], offsets[d])
