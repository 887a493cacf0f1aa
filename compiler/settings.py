"""The options of one compilation, from keyword arguments and environment variables."""

import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from platformdirs import user_cache_path

from sparsec.errors import InvalidInput
from sparsec.tokens.budget import TokenPruning

Tune = Literal["off", "quick", "full"]
WeightCheck = Literal["sampled", "full", "versions"]
TUNE_LEVELS = get_args(Tune)
WEIGHT_CHECKS = get_args(WeightCheck)


class Options(TypedDict, total=False):
    """The options of ``sparsec.compile(model, (x,), **options)`` and of ``torch.compile(model, backend="sparse", options=options)``.

    All may be left out. What they mean and what they are then: see ``Settings``.
    """

    tune: Tune
    threads: int | None
    cache_dir: Path | str
    dump_dir: Path | str | None
    stop_after: str | None
    token_pruning: TokenPruning | Mapping[str, Any] | None
    remove_padding: bool
    check_weights: WeightCheck
    target: str
    cpu: str | Sequence[str] | None
    tracker: str | None
    tracker_key: str | None


def _cache_directory() -> Path:
    chosen = os.environ.get("SPARSEC_CACHE_DIR")
    return Path(chosen) if chosen else user_cache_path("sparsec")


def _dump_directory() -> Path | None:
    chosen = os.environ.get("SPARSEC_DUMP")
    return Path(chosen) if chosen else None


def default_threads() -> int:
    """The threads of a program where nobody says how many, at every door.

    Those of torch where it is loaded (``torch.set_num_threads``), else OMP_NUM_THREADS, else the cores that the process may use.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    wished = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wished) if wished.isdecimal() and int(wished) else len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """How to compile; the defaults come from the environment at the time of construction.

    InvalidInput for a value out of range.

    Attributes:
        tune: "off" (good defaults at once), "quick" or "full" (measure candidates).
        threads: how many the program runs on; None means what ``default_threads`` says.
        cache_dir: records and kernels (SPARSEC_CACHE_DIR).
        dump_dir: where the graph after each pass is written (SPARSEC_DUMP).
        stop_after: name of the last pass to run (SPARSEC_STOP_AFTER).
        token_pruning: which tokens may be left out (changes answers; see ``TokenPruning``).
        remove_padding: compute a batch of sequences of unequal length without their padding.
        check_weights: how a call of ``torch.compile`` makes sure that the weights are those compiled in, besides their versions: "sampled"
            (some bytes at each call, all within some calls), "full" (all bytes at each call) or "versions" (no bytes).
        target: the kind of machine to make kernels for: "native" (what this one is) or the name of a backend.
        cpu: the processor, by LLVM's name; None: this one. Code for one that is not here can be saved, and neither run nor measured here.
            Several make an artifact for each of them, of which a machine runs the best that it can.
        tracker, tracker_key: "HOST:PORT" of a tracker of TVM's, and the key of its boards that tuning measures on, instead of here.
    """

    tune: Tune = "off"
    threads: int | None = None
    cache_dir: Path = field(default_factory=_cache_directory)
    dump_dir: Path | None = field(default_factory=_dump_directory)
    stop_after: str | None = field(default_factory=lambda: os.environ.get("SPARSEC_STOP_AFTER") or None)
    token_pruning: TokenPruning | Mapping[str, Any] | None = None
    remove_padding: bool = False
    check_weights: WeightCheck = "sampled"
    target: str = "native"
    cpu: str | Sequence[str] | None = None
    tracker: str | None = None
    tracker_key: str | None = None

    def __post_init__(self) -> None:
        if self.tune not in TUNE_LEVELS:
            raise InvalidInput(f"Unknown tuning level {self.tune!r}.", hint=f"Use one of {', '.join(TUNE_LEVELS)}.")
        if self.check_weights not in WEIGHT_CHECKS:
            raise InvalidInput(f"Unknown check of weights {self.check_weights!r}.", hint=f"Use one of {', '.join(WEIGHT_CHECKS)}.")
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise InvalidInput(f"threads must be a positive integer or None, got {self.threads!r}.")
        if (self.tracker is None) != (self.tracker_key is None):
            hint = "Give both: tracker and tracker_key (--tracker HOST:PORT --key KEY), or neither."
            raise InvalidInput("Boards are named by a tracker and a key.", why="One of the two is missing.", hint=hint)
        object.__setattr__(self, "cache_dir", Path(self.cache_dir))
        if self.dump_dir is not None:
            object.__setattr__(self, "dump_dir", Path(self.dump_dir))
        if self.token_pruning is not None:
            object.__setattr__(self, "token_pruning", TokenPruning.read(self.token_pruning))
        if not isinstance(self.remove_padding, bool):
            raise InvalidInput(f"remove_padding is True or False, got {self.remove_padding!r}.")
        if self.cpu is not None and not isinstance(self.cpu, str):
            self._name_processors(self.cpu)

    def _name_processors(self, names: Any) -> None:
        names = tuple(names) if isinstance(names, Iterable) else ()
        if not names or not all(isinstance(name, str) for name in names):
            raise InvalidInput(
                f"cpu is the name of a processor, or several, got {self.cpu!r}.",
                hint='Write cpu="x86-64-v3", or cpu=("x86-64-v4", "x86-64-v3").',
            )
        object.__setattr__(self, "cpu", names if len(names) > 1 else names[0])

    @property
    def processors(self) -> tuple[str | None, ...]:
        """All that are named in ``cpu``; None for this machine's."""
        return (self.cpu,) if self.cpu is None or isinstance(self.cpu, str) else tuple(self.cpu)

    @property
    def processor(self) -> str | None:
        """The one that is named, None for this machine's. InvalidInput where there are several."""
        if len(self.processors) > 1:
            why, hint = f"It names {', '.join(map(str, self.processors))}.", "sparsec.compile(model, inputs, cpu=...) takes several."
            raise InvalidInput("cpu names several processors, where code is made for one.", why=why, hint=hint)
        return self.processors[0]

    @property
    def thread_count(self) -> int:
        """The threads to run on, at least one."""
        return self.threads or default_threads()

    @classmethod
    def from_options(cls, options: Options | Mapping[str, Any] | None) -> "Settings":
        """Settings from named options. InvalidInput names an unknown option and the nearest known one."""
        known = [entry.name for entry in fields(cls)]
        for name in options or {}:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(known)}."
                raise InvalidInput(f"Unknown option {name!r}.", hint=hint)
        return cls(**dict(options or {}))
