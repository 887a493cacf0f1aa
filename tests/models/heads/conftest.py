"""What makes hundreds of models affordable."""

import pytest

from sparsec import driver
from sparsec.errors import UnsupportedModel


@pytest.fixture(scope="module")
def libraries():
    """The kernels of every library made so far."""
    return []


@pytest.fixture
def lean(libraries, monkeypatch):
    """Only kernels that are called are built, and none that an earlier library has."""

    def called(lowered, _):
        used = {call.source.symbol: call.source for group in lowered.plan.groups for call in group.calls}
        for library in libraries:
            if used.keys() <= library.keys():
                return list(library.values())
        libraries.append({symbol: used[symbol] for symbol in sorted(used)})
        return list(libraries[-1].values())

    monkeypatch.setattr(driver, "_kernels", called)


@pytest.fixture
def plain(lean, without_inductor):
    """Both."""


@pytest.fixture
def faults(strict, monkeypatch):
    """Exceptions while compiling that no user can be told: to be empty after the test."""
    seen, compile_graph = [], driver.compile_graph

    def watched(*args, **kwargs):
        try:
            return compile_graph(*args, **kwargs)
        except UnsupportedModel:
            raise
        except Exception as error:
            seen.append(error)
            raise

    monkeypatch.setattr(driver, "compile_graph", watched)
    return seen
