"""Order by forms, private copies, stories, dumps; settings and errors that go with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from sparsec.errors import InvalidInput, PipelineError, SparsecError, VerificationError
from sparsec.ir.editor import Editor
from sparsec.ir.forms import Form
from sparsec.ir.pipeline import Context, Miss, NodePass, Pass, run
from sparsec.passes import PIPELINE, FoldConstants, FuseEpilogue, InferActivationFacts, InferWeightFacts
from sparsec.settings import Settings
from tests.strategies import Network, integers

aten = torch.ops.aten


@pytest.fixture
def net() -> Network:
    network = Network((1, 2, 4, 4), 0)
    network.conv(integers((3, 2, 3, 3), 1))
    network.add(aten.relu.default, network.last)
    return network.returns(network.last)


class BreaksShapes(Pass):
    name = "breaks_shapes"
    takes = gives = Form.CAPTURED

    def apply(self, edit: Editor, context: Context) -> None:
        edit.nodes()[0].meta["val"] = torch.empty(1)


class NegatesRelu(NodePass):
    name = "negates_relu"
    takes = gives = Form.CAPTURED

    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | Miss | None:
        if node.target is aten.conv2d.default:
            return Miss("a convolution is not negated", node)
        return {"node": node} if node.target is aten.relu.default else None

    def rewrite(self, edit: Editor, context: Context, node: fx.Node) -> str:
        edit.replace(node, aten.neg.default, node.args)
        return "negated"


def test_order_is_checked_before_anything_runs(net: Network) -> None:
    with pytest.raises(PipelineError, match=r"(?s)fuse_epilogue cannot run here.*takes INFERRED, the graph is CAPTURED"):
        run(net.graph_module, (BreaksShapes(), FuseEpilogue()), Context())


def test_the_graph_is_verified_after_every_pass(net: Network) -> None:
    with pytest.raises(VerificationError):
        run(net.graph_module, (BreaksShapes(), FoldConstants()), Context())


def test_facts_of_activations_need_those_of_weights(net: Network) -> None:
    with pytest.raises(VerificationError, match="a value has no fact"):
        run(net.graph_module, (InferActivationFacts(), InferWeightFacts()), Context())


def test_a_node_pass_tells_hits_and_misses(net: Network) -> None:
    net.edit.note(net.values[1], source="model.py:7")
    story = run(net.graph_module, (NegatesRelu(),), Context()).story
    text = str(story)
    assert "negates_relu: 1 changed, 1 refused" in text
    assert "+ relu_default: negated" in text
    assert "- conv2d_default: a convolution is not negated model.py:7" in text


def test_stopping_after_a_pass(net: Network) -> None:
    settings = Settings(stop_after="infer_weight_facts")
    story = run(net.graph_module, PIPELINE, Context(settings)).story
    names = [step.name for step in PIPELINE]
    assert [chapter.name for chapter in story.chapters] == names[: names.index("infer_weight_facts") + 1]
    with pytest.raises(PipelineError, match="no pass named 'fuse'"):
        run(net.graph_module, PIPELINE, Context(replace(settings, stop_after="fuse")))


def test_every_pass_is_dumped(net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_DUMP", str(tmp_path / "dump"))
    run(net.graph_module, PIPELINE, Context())
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names == sorted(f"{i:02d}_{step.name}.{kind}" for i, step in enumerate(PIPELINE) for kind in ("py", "txt"))
    at = [step.name for step in PIPELINE].index("fuse_epilogue")
    assert "sparsec_ir_ops_conv2d" in (tmp_path / "dump" / f"{at:02d}_fuse_epilogue.py").read_text()
    assert "fuse_epilogue: 1 changed" in (tmp_path / "dump" / f"{at:02d}_fuse_epilogue.txt").read_text()


def test_a_folder_that_takes_no_dump_changes_nothing_else(net: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    story = run(net.graph_module, PIPELINE, Context(Settings(dump_dir=tmp_path / "file"))).story
    assert [chapter.name for chapter in story.chapters] == [step.name for step in PIPELINE]
    (warning,) = caplog.messages
    assert f"{tmp_path / 'file'}: File exists" in warning


def test_passes_have_one_name_each_and_no_state() -> None:
    assert len({step.name for step in PIPELINE}) == len(PIPELINE)
    assert all(not vars(step) for step in PIPELINE)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SPARSEC_STOP_AFTER", "fold_constants")
    assert (Settings().cache_dir, Settings().stop_after) == (tmp_path, "fold_constants")
    assert Settings.from_options({"tune": "quick", "threads": 2}).thread_count == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuen": "off"}, "(?s)Unknown option 'tuen'.*Did you mean 'tune'"),
        ({"zzz": 1}, "(?s)Unknown option 'zzz'.*Known options: tune"),
        ({"tune": "max"}, "(?s)Unknown tuning level 'max'.*off, quick, full"),
        ({"threads": 0}, "positive integer"),
        ({"threads": "two"}, "positive integer"),
    ],
)
def test_bad_options_are_told(options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Settings.from_options(options)


def test_errors_say_what_where_why_and_what_next() -> None:
    error = SparsecError("It broke.", where="x.py:1", why="too old", hint="Renew it.")
    assert str(error) == "It broke.\n  where: x.py:1\n  why: too old\n  next: Renew it."
    assert str(SparsecError("It broke.")) == "It broke."
