"""One thread everywhere: oversubscription makes tests many times slower."""

import os
from collections import Counter
from datetime import date

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Which of the tests that take turns are run; set before there are workers, so that midnight does not part them.
os.environ.setdefault("SPARSEC_SHARD", str(date.today().toordinal()))

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "sparsec", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("sparsec")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the parameters of tests that take turns whose day it is not, and begin with the files that take long.

    Workers take whole files: a long one at the end would leave the others idle.
    """
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    if os.environ.get("SPARSEC_SWEEP"):
        return
    seen: Counter[str] = Counter()
    waiting = []
    for item in items:
        if (turns := item.get_closest_marker("turns")) is not None:
            test = item.nodeid.partition("[")[0]
            waiting += [item] * ((seen[test] + int(os.environ["SPARSEC_SHARD"])) % turns.args[0] != 0)
            seen[test] += 1
    items[:] = [item for item in items if item not in set(waiting)]
    config.hook.pytest_deselected(items=waiting)


def pytest_report_header() -> str:
    """How to repeat the choice."""
    return f"SPARSEC_SHARD={os.environ['SPARSEC_SHARD']}"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the user's shell do not reach the tests, and internal errors fail them."""
    for name in ("SPARSEC_DUMP", "SPARSEC_STOP_AFTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARSEC_STRICT", "1")


@pytest.fixture
def strict(monkeypatch):
    """Errors of the compiler are raised, and every warning of torch.compile's door is said again."""
    from sparsec.doors.torch_compile import backend

    monkeypatch.setenv("SPARSEC_STRICT", "1")
    monkeypatch.setattr(backend, "_said", set())
    torch._dynamo.reset()


@pytest.fixture
def without_inductor(monkeypatch):
    """What Inductor would compile runs as it is: its C++ takes seconds a graph, which many graphs cannot have."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A cache of kernels."""
    return tmp_path_factory.mktemp("kernels")
