"""Every candidate of every kind of task is right on storages made in numpy, and wrong results are noticed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsec.autotune.activations import from_storage, parity_planes, to_storage
from sparsec.autotune.candidate import Bench, Wrong, deviation
from sparsec.autotune.expected import TOLERANCE
from sparsec.autotune.job import Job, read_job, write_job
from sparsec.autotune.tasks import pattern_key, restored_schedule, shape_key, storages, task_key
from sparsec.backends.lowering import draft
from sparsec.backends.x86.backend import X86
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec
from sparsec.settings import Settings
from tests.autotune.fakes import Misbehaving, Variety, region_of


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    torch.manual_seed(0)
    settings = Settings(threads=1, cache_dir=tmp_path_factory.mktemp("cache"))
    return draft(region_of(Variety(), torch.randn(1, 3, 17, 17), settings), X86()).tasks


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.slow
def test_every_candidate_is_right(tasks, cache):
    backend, measured = X86(), []
    for task in tasks:
        schedules = backend.schedules(task)
        if len(schedules) < 2:
            continue
        bench = Bench(Job(task, tuple(schedules), backend, cache, threads=1, seed=3))
        for number in range(len(schedules)):
            reply = bench.prepare(number)
            assert reply["error"] <= TOLERANCE["float32"] and reply["kernels"] and len(reply["source"]) >= 20
            samples = bench.time(number, 3)
            assert len(samples) == 3 and min(samples) > 0
        measured.append(task)
    assert {t.spec.op for t in measured} >= {"conv2d", "linear"}
    assert any(t.residual for t in measured)
    assert {t.target.storage.layout for t in measured} == {"halo", "tiled", "single"}
    assert any(t.sources[0].storage.channels == 4 * t.spec.inputs[0][0] for t in measured), "parity planes"


def test_tasks_travel_as_json_and_arrays(tasks, cache, tmp_path):
    for task in tasks:
        if not task.weights:
            continue
        job = Job(task, ((("kernel", "block"), ("rows", 4)),), Misbehaving(), cache, threads=2, seed=5)
        write_job(job, tmp_path)
        back = read_job(tmp_path)
        assert (back.task.spec, back.schedules, back.threads, back.seed) == (task.spec, job.schedules, 2, 5)
        assert (task_key(back.task), storages(back.task)) == (task_key(task), storages(task))
        assert isinstance(back.backend, Misbehaving) and back.backend.machine == job.backend.machine
        for mine, theirs in zip(task.weights, back.task.weights, strict=True):
            assert (mine is None) == (theirs is None) and (mine is None or np.array_equal(mine, theirs))


def test_keys_depend_on_zeros_and_not_on_values(tasks):
    task = next(t for t in tasks if t.weights and t.weights[0] is not None and np.count_nonzero(t.weights[0]) < t.weights[0].size)
    weight = task.weights[0]
    scaled = replace(task, weights=(weight * 3, *task.weights[1:]))
    denser = replace(task, weights=(np.ones_like(weight), *task.weights[1:]))
    assert task_key(scaled) == task_key(task)
    assert shape_key(denser) == shape_key(task) and pattern_key(denser) != pattern_key(task)


def test_specs_and_schedules_travel_as_json(tasks):
    for task in tasks:
        assert KernelSpec.restored(task.spec.json()) == task.spec
    schedule = (("kernel", "spmm"), ("vectors", 4))
    assert restored_schedule(json.loads(json.dumps(schedule))) == schedule
    for bad in ([["a", 1.5]], [["a"]], "spmm", [[1, "a"]], [["a", True]]):
        with pytest.raises(ValueError, match="schedule"):
            restored_schedule(bad)


@given(st.integers(1, 5), st.integers(1, 19), st.integers(1, 19), st.integers(0, 3), st.sampled_from(["halo", "tiled"]))
def test_values_in_and_out_of_storages(channels, height, width, pad, layout):
    storage = Storage(layout, channels, Geometry(height, width, pad, 32))
    x = np.random.default_rng(0).standard_normal((channels, height, width), np.float32)
    stored = to_storage(x, storage)
    assert len(stored) % 16 == 0
    assert np.array_equal(from_storage(stored, storage), x)
    if layout == "halo":
        assert np.count_nonzero(stored) == np.count_nonzero(x)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(2, 4))
def test_parity_planes(channels, height, width, step):
    x = np.random.default_rng(0).standard_normal((channels, height, width), np.float32)
    planes = parity_planes(x, step)
    assert planes.shape == (channels * step * step, -(-height // step), -(-width // step))
    for c, h, w in np.ndindex(x.shape):
        assert planes[(c * step + h % step) * step + w % step, h // step, w // step] == x[c, h, w]


def test_wrong_results_are_noticed():
    wanted = np.array([1.0, -4.0, 0.0])
    assert deviation(wanted, wanted, 1e-5) == 0
    assert deviation(np.array([1.0, -4.0, 3e-5]), wanted, 1e-5) == pytest.approx(0.75e-5)
    with pytest.raises(Wrong, match=r"max error 1\.0e-03"):
        deviation(np.array([1.0, -4.004, 0.0]), wanted, 1e-5)
    with pytest.raises(Wrong, match="not finite"):
        deviation(np.array([1.0, np.nan, 0.0]), wanted, 1e-5)
    with pytest.raises(Wrong, match="not finite"):
        deviation(wanted, np.array([1.0, np.inf, 0.0]), 1e-5)
    assert deviation(np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), 1e-5) == 0
    assert deviation(np.zeros(3), np.zeros(3), 1e-5) == 0
    assert deviation(np.array([1.0, -4.0, 3e-5]), wanted, 1e-5, least=8.0) == pytest.approx(0.375e-5)


def test_a_candidate_that_writes_nothing_does_not_pass_for_the_one_before(tasks, cache, monkeypatch):
    task = next(t for t in tasks if t.weights and len(X86().schedules(t)) > 1)
    bench = Bench(Job(task, tuple(X86().schedules(task)[:2]), X86(), cache, threads=1, seed=3))
    assert bench.prepare(0)["error"] <= TOLERANCE["float32"]
    monkeypatch.setattr(Bench, "_run", lambda *_: None)
    with pytest.raises(Wrong):
        bench.prepare(1)
