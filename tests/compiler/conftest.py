"""Fixtures of the door's tests."""

import sys
import types

import pytest
import torch

from sparsec.doors.torch_compile import backend as torch_backend
from tests.compiler.stand_in import StandIn


@pytest.fixture
def driver(monkeypatch):
    """A stand-in for the compiler behind the door."""
    stand_in = StandIn()
    module = types.ModuleType("sparsec.driver")
    module.compile_graph = stand_in.compile_graph
    monkeypatch.setitem(sys.modules, "sparsec.driver", module)
    monkeypatch.setenv("SPARSEC_STRICT", "1")
    monkeypatch.setattr(torch_backend, "_said", set())
    torch._dynamo.reset()
    torch.manual_seed(0)
    return stand_in
