"""Programs by the weights they were compiled from; the check at each call, and forgetting the dead."""

import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sparsec.doors.torch_compile.contents import Fingerprint
from sparsec.run.forks import opened_in_children
from sparsec.run.heap import give_back

#: Entries of a table, and bytes of constants that those of the same weights hold besides the latest.
LIMIT, LIMIT_BYTES = 64, 256 << 20
_pointer = Tensor.data_ptr
_version = operator.attrgetter("_version")
_tables: "weakref.WeakSet[Table]" = weakref.WeakSet()
_registering = opened_in_children(threading.Lock())

Sizes = list[Any]
Freed = Callable[[Sizes], Sizes]


class Entry:
    """One program and what it holds for.

    The storages of the weights are kept alive, so an address cannot come to mean other values; a weight is then the same
    if address, version and contents are. The weights themselves are not kept: when one dies, the entry goes.
    ``freed`` gives the same for all sizes of inputs that the program serves. ``constant``: the program has the weights' values in it.
    ``stale``: a weight was written to since. ``held``: bytes of constants by their identity.
    """

    def __init__(
        self,
        run: Callable[[tuple], Sequence[Any]],
        *,
        takes_inputs: bool = False,
        freed: Freed | None = None,
        constant: bool = True,
        held: Mapping[int, int] | None = None,
    ) -> None:
        self.run, self.takes_inputs, self.freed, self.constant, self.held = run, takes_inputs, freed, constant, held or {}
        self.pointers: list[int] = []
        self.versions: list[int] = []
        self.sizes: Sizes = []
        self.served: Sizes = []
        self.kept: list[Tensor] = []
        self.memory: frozenset[int] = frozenset()
        self.owners: list[weakref.ref] = []
        self.unwritten: Callable[[], bool] | None = None
        self.stale = False

    def fits(self, sizes: Sizes) -> bool:
        """Whether the inputs have the sizes compiled for, up to what is free."""
        return sizes == self.sizes or (self.freed is not None and self.freed(sizes) == self.served)

    def holds(self) -> bool:
        """Whether no write to the weights was seen that their versions do not tell; one that is makes all that was made of them stale."""
        if not self.stale and self.unwritten is not None and not self.unwritten():
            outdate(self.memory)
        return not self.stale


class Table:
    """The entries of one graph, least recently used first. weights: positions among the graph's `count` inputs.

    ``find`` and ``add`` are for one thread at a time; entries may be matched and dropped meanwhile, each step of which is atomic.
    """

    def __init__(self, count: int, weights: Sequence[int]) -> None:
        constant = set(weights)
        self.weights, self.others = weights, [position for position in range(count) if position not in constant]
        self.pick_weights, self.pick_inputs = _picker(self.weights), _picker(self.others)
        self.entries: dict[tuple, Entry] = {}
        self.freedoms: list[Freed | None] = [None]
        self.recent: Entry | None = None
        self.hit = False
        with _registering:
            _tables.add(self)

    def match(self, weights: tuple, inputs: tuple) -> Entry | None:
        """The entry used last, if it holds for these weights and the sizes of these inputs.

        A weight made in inference mode has no version; nothing holds for it.
        """
        entry = self.recent
        if entry is None:
            return None
        try:
            same = list(map(_pointer, weights)) == entry.pointers and list(map(_version, weights)) == entry.versions
        except RuntimeError:
            return None
        if not same or not entry.fits(sizes_of(inputs)) or not entry.holds():
            return None
        self.hit = True
        return entry

    def join(self, weights: tuple, inputs: tuple) -> tuple:
        """All inputs of the graph in their order."""
        together: list[Any] = [None] * (len(weights) + len(inputs))
        for positions, values in ((self.weights, weights), (self.others, inputs)):
            for position, value in zip(positions, values, strict=True):
                together[position] = value
        return tuple(together)

    def find(self, args: tuple) -> tuple[Entry | None, bool]:
        """The entry for these arguments, if any, and whether one was dropped because a weight was written to."""
        weights, sizes = self.pick_weights(args), sizes_of(self.pick_inputs(args))
        try:
            pointers, versions = list(map(_pointer, weights)), list(map(_version, weights))
        except RuntimeError:
            return None, False
        for freed in self.freedoms:
            key = _key(pointers, sizes, freed)
            entry = self.entries.get(key)
            if entry is None or entry.freed is not freed:
                continue
            if entry.versions != versions or not entry.holds():
                self.drop(key)
                return None, True
            self._use(key)
            return entry, False
        return None, False

    def add(self, entry: Entry, args: tuple, made_of: Fingerprint) -> None:
        """Make `entry` the one for these arguments, whose weights still are what it was made of."""
        weights = self.pick_weights(args)
        entry.pointers, entry.versions = made_of.pointers, made_of.versions
        entry.unwritten = made_of.unwritten if entry.constant else None
        entry.sizes, entry.kept = sizes_of(self.pick_inputs(args)), [weight.detach() for weight in weights]
        entry.memory = memory_of(weights)
        entry.served = entry.sizes if entry.freed is None else entry.freed(entry.sizes)
        self.freedoms = [freed for freed in self.freedoms if freed is not entry.freed] + [entry.freed]
        key, table = _key(entry.pointers, entry.sizes, entry.freed), weakref.ref(self)

        def forget(_: object) -> None:
            if (alive := table()) is not None:
                alive.drop(key)

        entry.owners = [weakref.ref(_life_of(weight), forget) for weight in weights]
        self.entries[key] = entry
        self._use(key)
        for oldest in list(self.entries)[:-LIMIT]:
            self.drop(oldest)
        if len(self.entries) > 1:
            self._make_room(entry)
            give_back(sum(entry.held.values()))

    def _make_room(self, latest: Entry) -> None:
        """Drop what the same weights became for other sizes, least recently used first, where it holds too much."""
        others = [(key, entry) for key, entry in list(self.entries.items()) if entry.pointers == latest.pointers and entry is not latest]
        while others and held_bytes([entry for _, entry in others], latest) > LIMIT_BYTES:
            self.drop(others.pop(0)[0])

    def _use(self, key: tuple) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.entries[key] = self.recent = entry
        if entry is not None and any(owner() is None for owner in entry.owners):
            self.drop(key)

    def drop(self, key: tuple) -> None:
        """Forget one entry."""
        if self.entries.pop(key, None) is self.recent:
            self.recent = None


class _Life:
    """Ends with the tensor that has it as an attribute.

    In place of a weak reference to the tensor, which ``torch.utils.swap_tensors`` does not allow; it takes attributes along. Copies of a
    tensor get another, files an empty dictionary.
    """

    __slots__ = ("__weakref__",)

    def __deepcopy__(self, memo: object) -> "_Life":
        return _Life()

    def __reduce__(self) -> tuple:
        return OrderedDict, ()


def _life_of(tensor: Tensor) -> _Life:
    life = tensor.__dict__.get("_sparsec_life")
    if not isinstance(life, _Life):
        life = tensor.__dict__["_sparsec_life"] = _Life()
    return life


def memory_of(tensors: Iterable[Tensor]) -> frozenset[int]:
    """Addresses of the storages that hold something; views of one have the same."""
    return frozenset(pointer for tensor in tensors if (pointer := tensor.untyped_storage().data_ptr()))


def _made_of(memory: frozenset[int] | None) -> list[tuple[Table, tuple, Entry]]:
    """Every entry made of weights in any of these storages, and where it is; None means all."""
    with _registering:
        tables = list(_tables)
    every = [(table, key, entry) for table in tables for key, entry in list(table.entries.items())]
    return [found for found in every if memory is None or not memory.isdisjoint(found[2].memory)]


def outdate(memory: frozenset[int]) -> None:
    """Let nothing that was made of weights in these storages be used again: they were written to."""
    for _, _, entry in _made_of(memory):
        entry.stale = True


def drop_entries(memory: frozenset[int] | None) -> None:
    """Forget, in every table, the entries made of weights in any of these storages; None means all entries."""
    for table, key, entry in _made_of(memory):
        entry.stale = True
        table.drop(key)


def held_bytes(entries: Iterable[Entry], besides: Entry) -> int:
    """Bytes of constants that entries hold, each once, besides those that one holds anyway."""
    held = {number: nbytes for entry in entries for number, nbytes in entry.held.items()}
    return sum(nbytes for number, nbytes in held.items() if number not in besides.held)


def sizes_of(inputs: Sequence[Any]) -> Sizes:
    """The shape of each tensor, the other values as they are."""
    return [value.shape if isinstance(value, Tensor) else value for value in inputs]


def free_batch(sizes: Sizes) -> Sizes:
    """The sizes with -1 for the leading size of the first tensor wherever it leads, and for numbers equal to it."""
    batch = next((size[0] for size in sizes if isinstance(size, tuple) and size), None)
    if batch is None:
        return sizes
    return [(-1, *size[1:]) if isinstance(size, tuple) and size and size[0] == batch else -1 if size == batch else size for size in sizes]


def _key(pointers: list[int], sizes: Sizes, freed: Freed | None) -> tuple:
    return tuple(pointers), tuple(sizes if freed is None else freed(sizes)), id(freed)


def _picker(positions: Sequence[int]) -> Callable[[tuple], tuple]:
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return lambda args: tuple(args[position] for position in positions)
