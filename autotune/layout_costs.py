"""What a change of layout costs on this machine, for the minimum cut: measured once, then remembered."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsec.backends.assemble import assemble
from sparsec.backends.base import Backend
from sparsec.backends.plan import Buffer, Group, Move, Plan, Task
from sparsec.lower.costs import Costs
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec

logger = logging.getLogger("sparsec")

# A map of the middle of a network: too large for L1, small enough for L2 together with its copy.
_CHANNELS, _SIZE, _DENSITY = 128, 28, 0.1
_REPEATS = 40


def layout_costs(backend: Backend, cache: Path, measuring: bool) -> Costs:
    """The backend's costs, with those of layouts as kept in ``cache``, or if ``measuring`` and there are none, measured in a second."""
    path = cache / f"layouts-{backend.machine.key()}.json"
    try:
        kept = json.loads(path.read_text())
        return replace(backend.costs(), convert=float(kept["convert"]), turned_read=float(kept["turned_read"]))
    except (OSError, ValueError, TypeError, KeyError):
        logger.debug("no layout costs at %s", path)
    if not measuring:
        return backend.costs()
    found = measure(backend, cache)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"convert": found.convert, "turned_read": found.turned_read}))
    except OSError as error:
        logger.debug("layout costs cannot be kept: %s", error)
    return found


def measure(backend: Backend, cache: Path) -> Costs:
    """Time the conversion, and one 1x1 convolution from either layout, alternating; best of several."""
    space = Geometry(_SIZE, _SIZE, 1, backend.tile)
    halo, tiled = (Storage(layout, _CHANNELS, space) for layout in ("halo", "tiled"))  # type: ignore[arg-type]
    groups = [
        Group((backend.move(Move(Buffer("x", halo), Buffer("y", tiled), shape=(_CHANNELS, _SIZE, _SIZE))),)),
        *(_convolution(backend, source, halo) for source in (tiled, halo)),
    ]
    size = 4 * _CHANNELS * _SIZE * _SIZE
    convert, from_tiled, from_halo = _fastest(backend, groups, cache)
    return replace(backend.costs(), convert=convert / size, turned_read=max(from_halo - from_tiled, 0.0) / size)


def _convolution(backend: Backend, source: Storage, target: Storage) -> Group:
    shape = (_CHANNELS, _SIZE, _SIZE)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((_CHANNELS, _CHANNELS, 1, 1), np.float32)
    weight *= rng.random(weight.shape) < _DENSITY
    plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    spec = KernelSpec("conv2d", (shape,), shape, (weight.shape, None), attributes=tuple(plain.items()))
    task = Task("conv", spec, (Buffer("x", source),), None, Buffer("y", target), (weight, None))
    return backend.lower(task, backend.schedules(task)[0])[0]


def _fastest(backend: Backend, groups: Sequence[Group], cache: Path) -> list[float]:
    """Seconds of each group, run in turns."""
    kernels = list({c.source.symbol: c.source for g in groups for c in g.calls}.values())
    library = backend.build(kernels, cache)
    programs = [assemble(Plan((g,), (), ()), kernels, ((), ()), 1, executor=backend.executor) for g in groups]
    runners = [backend.runner(program, library, 1) for program in programs]
    best = [float("inf")] * len(groups)
    for _ in range(_REPEATS):
        for number, runner in enumerate(runners):
            begin = time.perf_counter()
            runner.run_addresses([], [], 1)
            best[number] = min(best[number], time.perf_counter() - begin)
    return best
