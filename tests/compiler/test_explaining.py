"""What became of a model, by one function for every door; a line and warnings that name the graph."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.doors.torch_compile.notes import GraphNote, combined
from sparsec.errors import InvalidInput
from sparsec.run.explanation import Explanation
from tests.fuzz.prelude import seeded

pytestmark = pytest.mark.usefixtures("strict", "without_inductor")


class Two(nn.Module):
    """Two pruned layers, in two graphs where ``apart``."""

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.apart = nn.Linear(64, 64), nn.Linear(64, 32), apart

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.apart:
            torch._dynamo.graph_break()
        return self.second(x)


X = torch.randn(4, 64)


def compiled(model: Any, kernels: Path, **options: Any) -> Any:
    return torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels, **options})


@pytest.fixture
def pruned() -> Callable[..., nn.Module]:
    return lambda apart=False: seeded(Two(apart), "90%", 0)


def test_a_compiled_module_is_explained_as_an_object_is(kernels, pruned):
    model = pruned()
    fast = compiled(model, kernels)
    assert "Nothing has been compiled yet" in str(sparsec.explain(fast))
    with torch.no_grad():
        fast(X)
    ours, theirs = sparsec.explain(fast), sparsec.explain(sparsec.compile(model, (X,), threads=1, cache_dir=kernels))
    assert [layer.kernel for layer in ours.layers] == [layer.kernel for layer in theirs.layers]
    assert len(ours.layers) == 2 and not any(layer.stayed_dense for layer in ours.layers)
    assert "(forward, test_explaining.py:" in ours.notes[0]


def test_artifacts_paths_and_objects(kernels, pruned, tmp_path):
    made = sparsec.compile(pruned(), (X,), threads=1, cache_dir=kernels)
    path = made.save(tmp_path / "net.sparsec")
    found = [sparsec.explain(what) for what in (made, sparsec.load(path), path, str(path))]
    assert found[0].layers and all(each == found[0] for each in found)


def test_all_graphs_are_told_and_where_they_begin(kernels, pruned):
    fast = compiled(pruned(apart=True), kernels)
    with torch.no_grad():
        fast(X)
    found = sparsec.explain(fast)
    assert len(found.layers) == 2 and "2 layers: 2 sparse" in found.summary()
    places = [note for note in found.notes if note.startswith("graph ")]
    assert len(places) == 2 and "resume" in places[1]


def test_what_is_noted_of_several_graphs_is_told_once():
    notes = [
        GraphNote(number, None, Explanation(notes=("of all", *own))) for number, own in enumerate([("of two",), (), ("of two", "of one")])
    ]
    assert combined(notes).notes[3:] == ("of all", "graph 0, 2: of two", "graph 2: of one")
    assert combined(notes[:1]).notes[1:] == ("of all", "of two")


def test_functions_methods_and_a_second_object_of_the_same_options(kernels, pruned):
    class Other(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    model = seeded(Other(), "90%", 0)
    fast, again = (compiled(model, kernels) for _ in range(2))

    def call(x: Tensor) -> Tensor:
        return model(x) * 2

    function = compiled(call, kernels)
    with torch.no_grad():
        fast(X), again(X), function(X)
    assert len(sparsec.explain(fast).layers) == len(sparsec.explain(again).layers) == len(sparsec.explain(function).layers) == 2
    assert "(call, " in sparsec.explain(function).notes[0]
    assert not sparsec.explain(compiled(lambda x: x + 1, kernels)).layers


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model: model.double(), "torch.float64"),
        (lambda model: model.bfloat16(), "torch.bfloat16"),
        (lambda model: model.requires_grad_(True), "gradients are needed"),
    ],
)
def test_what_is_left_to_torch_says_why(kernels, pruned, change, why):
    model = change(pruned())
    fast = compiled(model, kernels)
    with torch.set_grad_enabled("gradients" in why):
        fast(X.to(model.first.weight.dtype))
    found = sparsec.explain(fast)
    assert not found.layers and found.uncovered and all(why in reason for _, reason in found.uncovered)


def test_what_is_refused_says_why(kernels, pruned):
    model = pruned()

    def call(x: Tensor) -> Tensor:
        return model(x)[x.sum() > 0]

    fast = compiled(call, kernels)
    with torch.no_grad():
        fast(X)
    assert sparsec.explain(fast).layers or sparsec.explain(fast).uncovered


def test_a_graph_is_one_line_and_warnings_name_it(kernels, pruned, caplog):
    with caplog.at_level(logging.INFO, "sparsec"), torch.no_grad():
        fast = compiled(pruned(), kernels)
        fast(X), fast(X)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert line.startswith("sparsec: graph ") and "2 layers: 2 sparse" in line and "test_explaining.py" in line
    with caplog.at_level(logging.WARNING, "sparsec"):
        compiled(pruned().train(), kernels)(X)
    assert [record.getMessage() for record in caplog.records][-1].startswith("sparsec: graph ")


def test_torch_logs_shows_the_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\nfrom torch import nn\nmodel = nn.Linear(64, 64).eval()\nmodel.weight.data[:, 8:] = 0\n"
        "with torch.no_grad():\n    torch.compile(model, backend='sparse', options={'threads': 1})(torch.ones(1, 64))\n"
    )
    environment = {**os.environ, "TORCH_LOGS": "sparsec"}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    assert "sparsec: graph 0: 1 layers: 1 sparse" in done.stderr


@pytest.mark.parametrize("what", [3, None, nn.Linear(2, 2), lambda x: x, np.ones(3), torch.compile(nn.Linear(2, 2), backend="eager")])
def test_what_cannot_be_explained(what):
    if hasattr(what, "dynamo_ctx"):
        assert "Nothing has been compiled yet" in str(sparsec.explain(what))
        return
    with pytest.raises(InvalidInput, match="nothing to explain"):
        sparsec.explain(what)


def test_notes_go_with_their_graphs(kernels, pruned):
    fast = compiled(pruned(), kernels)
    with torch.no_grad():
        fast(X)
    assert sparsec.explain(fast).layers
    torch._dynamo.reset()
    assert not sparsec.explain(fast).layers
