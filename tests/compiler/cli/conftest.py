"""Fixtures of the tests of the command."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsec.cli import app
from sparsec.errors import UnsupportedModel
from sparsec.run import artifact
from tests.compiler.cli.shop import BEYOND_US, EXPLANATION, FACTORIES, Compiled, Invoke
from tests.compiler.tiny_program import ANY_MACHINE, chain, library


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """A fake driver; the list receives each compilation."""
    made: list[Compiled] = []

    def compile(model: Any, inputs: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> Compiled:
        if options["threads"] == BEYOND_US:
            raise UnsupportedModel("This model is beyond us.", where="layer 3", hint="Try another.")
        made.append(Compiled(model, inputs, options, kwargs or {}))
        return made[-1]

    driver = types.ModuleType("sparsec.driver")
    driver.compile = compile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sparsec.driver", driver)
    monkeypatch.setattr("sparsec.driver", driver, raising=False)
    return made


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in an own directory that holds the module ``shop_of_models``."""
    (tmp_path / "shop_of_models.py").write_text(FACTORIES)
    (tmp_path / "text.pt2").write_text("text")
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "shop_of_models", raising=False)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The artifact of ``chain()``."""
    return artifact.save(tmp_path / "tiny.sparsec", chain(), library(), EXPLANATION, {"output": "leaf"}, ANY_MACHINE)
