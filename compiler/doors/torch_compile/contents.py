"""Whether the bytes of weights are still those that were read, whoever wrote: what no version tells.

Writes through ``.data``, numpy and other libraries leave no trace in a tensor, and all bytes are too many to read at every call (340 MB of
BERT-base take as long as a run). So a call looks at a few words of every weight, at places drawn once, half of them nonzero: what changes
much of a weight (a step, a mask, a copy) meets them. And it compares the digest of one slice, another one at each call: what changes little
is found when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor

from sparsec.doors.torch_compile import stamps
from sparsec.doors.torch_compile.seen import Piece, Samples

#: Share of the bytes that one call reads in a row, and the bounds of that.
_SHARE = 2048
_LEAST, _MOST = 4096, 1 << 17
_PIECES = 8  # of separate memory in one slice
_SAMPLES = 2, 12  # of a small and of a large weight
_SAMPLED = 4096  # bytes of a weight per sample
_DRAWN = 64  # places looked at for one that is nonzero
_ALL = 1 << 14  # places of which all are looked at
_BUT_SIGN = 0x7FFFFFFF  # of a float32: a product with a mask leaves -0.0


class Contents:
    """The bytes of some weights, as they are now. Whoever asks makes sure that the weights have their memory where they had it.

    ``calls``: how many calls of ``seem_same`` read every byte.

    ValueError: a weight's memory is not all there.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._alive = [weight.untyped_storage() for weight in weights]
        spans = sorted({span for weight in weights if (span := _span(weight)) is not None})
        slices = list(_slices(spans))
        self.calls = len(slices)
        self.samples = Samples(np.sort(_sampled(spans)), slices)

    def seem_same(self) -> bool:
        """Whether a few words of each weight and the next slice are as they were."""
        return self.samples.same()

    def are_same(self) -> bool:
        """Whether all bytes are as they were."""
        return self.samples.all_same()


def _span(weight: Tensor) -> Piece | None:
    """First address and number of bytes from the first to the last element."""
    if not weight.numel():
        return None
    reach = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)) + 1
    size, storage = reach * weight.element_size(), weight.untyped_storage()
    if weight.storage_offset() * weight.element_size() + size > storage.nbytes():
        raise ValueError("a weight's memory was given back")
    return weight.data_ptr(), size


def _sampled(spans: Iterable[Piece]) -> np.ndarray:
    """Addresses of 32-bit words."""
    draw = np.random.default_rng()
    found = [_sampled_of(start, size, draw) for start, size in spans]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _sampled_of(start: int, size: int, draw: np.random.Generator) -> np.ndarray:
    first = -(-start // stamps.HALF)
    count = (start + size) // stamps.HALF - first
    if count < 1:
        return np.zeros(0, np.int64)
    least, most = _SAMPLES
    wanted = min(max(size // _SAMPLED, least), most)
    places = draw.permutation(count) if count <= _ALL else draw.integers(0, count, wanted * _DRAWN)
    drawn = (first + places) * stamps.HALF
    nonzero = drawn[stamps.read_halves(stamps.halves(drawn)) & _BUT_SIGN != 0][: wanted // 2]
    return np.concatenate([nonzero, drawn[::-1][: wanted - len(nonzero)]])


def _slices(spans: Sequence[Piece]) -> Iterator[list[Piece]]:
    """All bytes in slices of about equal size."""
    most = min(max(sum(size for _, size in spans) // _SHARE, _LEAST), _MOST)
    taken: list[Piece] = []
    room = most
    for start, size in spans:
        for at in range(start, start + size, most):
            piece = at, min(most, start + size - at)
            if taken and (len(taken) == _PIECES or piece[1] > room):
                yield taken
                taken, room = [], most
            taken.append(piece)
            room -= piece[1]
    if taken:
        yield taken


class Fingerprint:
    """Weights as they were when a program began to read them.

    Attributes:
        pointers, versions: of each weight.
        unwritten: whether the bytes are the same too, as far as one call looks; ``check`` is Settings.check_weights.

    RuntimeError: a weight was made in inference mode. ValueError as ``Contents``.
    """

    def __init__(self, weights: Sequence[Tensor], check: str) -> None:
        self.pointers = [weight.data_ptr() for weight in weights]
        self.versions = [weight._version for weight in weights]
        self.unwritten: Callable[[], bool] | None = None
        if check != "versions":
            contents = Contents(weights)
            self.unwritten = contents.are_same if check == "full" else contents.seem_same

    def holds(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights are the same, their bytes as far as one call looks: what that misses, later calls find as any small write."""
        same = [w.data_ptr() for w in weights] == self.pointers and [w._version for w in weights] == self.versions
        return same and (self.unwritten is None or self.unwritten())
