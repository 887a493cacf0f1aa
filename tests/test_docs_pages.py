"""What pages list is what the code has: options, commands, names, models, files."""

import ast
import re
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import sparsec
from sparsec.bench.names import RIVALS
from sparsec.cli import app
from sparsec.doors.from_onnx.nodes import OLDEST, OPSETS
from sparsec.doors.from_onnx.specialize import MOST_ELEMENTS
from sparsec.models import zoo
from sparsec.run import artifact
from sparsec.run.manifest import FORMAT, MANIFEST
from sparsec.settings import TUNE_LEVELS, WEIGHT_CHECKS, Settings
from sparsec.tokens.budget import STRATEGIES, TokenPruning
from tests.documents import DOCS, ROOT, blocks, commands
from tests.pages import FOLDERS, TREES, rows, section, spans, text, values


def all_commands(group: Any, name: str = "") -> dict[str, Any]:
    """Commands by what is typed for them: "run", "farm serve"."""
    found: dict[str, Any] = {}
    for word, command in group.commands.items():
        found |= all_commands(command, f"{word} ") if hasattr(command, "commands") else {f"{name}{word}": command}
    return found


COMMANDS = all_commands(typer.main.get_command(app))


def command_of(line: str) -> Any:
    """The command that a line calls."""
    words = line.split()
    return COMMANDS.get(words[1]) or COMMANDS[f"{words[1]} {words[2]}"]


# Options.


def test_every_option_has_a_row_a_section_and_its_default() -> None:
    head = text("options").partition("## tune")[0]
    listed = {spans(row[0])[0]: row for row in rows(head)}
    assert list(listed) == [entry.name for entry in fields(Settings)]
    for name, row in listed.items():
        assert f"[`{name}`](#{name})" == row[0] and section("options", f"## {name}")
        if spans(row[2]):
            assert values(row[2]) == {getattr(Settings(cache_dir="x"), name)}
    assert values(listed["tune"][1]) == set(TUNE_LEVELS)
    assert values(listed["check_weights"][1]) == set(WEIGHT_CHECKS)


def test_values_of_options_are_explained() -> None:
    assert {value for row in rows(section("options", "## tune")) for value in values(row[0])} == set(TUNE_LEVELS)
    assert {value for row in rows(section("options", "## check_weights")) for value in values(row[0])} == set(WEIGHT_CHECKS)
    entries = {spans(row[0])[0]: row for row in rows(section("options", "## token_pruning"))}
    assert list(entries) == [entry.name for entry in fields(TokenPruning)]
    assert values(entries["strategy"][1]) == set(STRATEGIES)
    for entry in fields(TokenPruning):
        assert values(entries[entry.name][2]) == ({entry.default} if spans(entries[entry.name][2]) else set())


def test_modes_are_those_of_the_backend() -> None:
    from sparsec.doors.torch_compile.backend import MODES

    told = {
        mode: literal_eval(spans(row[1])[0]) if spans(row[1]) else {}
        for row in rows(section("options", "## Modes"))
        for mode in values(row[0])
    }
    assert told == {name: options for name, options in MODES.items() if name}


def test_options_are_spelled_as_the_command_does() -> None:
    takes = {option for name in ("compile", "tune") for parameter in COMMANDS[name].params for option in parameter.opts}
    for row in rows(text("options").partition("## tune")[0]):
        spelled = [span for span in spans(row[3]) if span.startswith("--")]
        assert spelled or row[3].startswith("none: ")
        assert set(spelled) <= takes


def environment() -> set[str]:
    """Names of environment variables that the code reads, in Python or C."""
    found = set()
    for node in (node for tree in TREES for node in ast.walk(tree)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ")), args=[ast.Constant(value=str(name)), *_]):
                found.add(name)
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name))):
                found.add(name)
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.[ch]")):
        found |= set(re.findall(r'getenv\("(\w+)"', path.read_text()))
    return found


def test_every_environment_variable_has_a_row() -> None:
    listed = [spans(row[0])[0] for row in rows(section("options", "## Environment variables"))]
    assert len(environment()) >= 8 and len(set(listed)) == len(listed)
    # Of torch, which reads it for us.
    assert set(listed) == environment() | {"TORCH_LOGS"}


# The command.


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_those_of_its_section(name: str) -> None:
    listed = {span for row in rows(section("cli", f"## sparsec {name}")) for span in spans(row[0])}
    takes = {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("-")}
    assert listed == takes


def test_the_page_has_every_command_and_common_option() -> None:
    assert sorted(re.findall(r"^## sparsec ([\w ]+)$", text("cli"), re.MULTILINE)) == sorted(COMMANDS)
    common = {span for row in rows(text("cli").partition("## sparsec")[0]) for span in spans(row[0]) if span.startswith("-")}
    group = typer.main.get_command(app)
    assert common == {option for parameter in group.params for option in parameter.opts} | {"--help", "-h"}
    assert {span for row in rows(section("cli", "## sparsec bench")) for span in spans(row[1])} >= set(RIVALS)


# Names, models, artifacts.


def test_every_public_name_is_in_the_reference() -> None:
    documented = set(re.findall(r"^::: ([\w.]+)$", text("api"), re.MULTILINE))
    for name in set(sparsec.__all__) - {"__version__", "errors", "SparsecError"}:
        assert f"sparsec.{name}" in documented, name
    assert "sparsec.errors" in documented
    for name in documented:
        assert _found(name) is not None, name


def _found(dotted: str) -> object:
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


def test_models_that_are_called_good_are_tested() -> None:
    from tests.models.heads.table import CASES

    zoo_names = [spans(row[0])[0] for row in rows(section("models", "## The zoo"))]
    assert zoo_names == list(zoo.NAMES)
    factories = {span.rpartition(":")[2] for span in spans(text("models")) if span.startswith("sparsec.models.zoo:")}
    assert factories and all(callable(getattr(zoo, name)) for name in factories)
    heads = [span for row in rows(section("models", "## With heads")) for span in spans(row[1])]
    assert len(heads) > 50
    unknown = [name for name in heads if not any(_is_case(name, case) for case in CASES)]
    assert not unknown


def _is_case(name: str, case: str) -> bool:
    """A case's own name, or that of a family: Bert of BertForQuestionAnswering."""
    return case == name or re.match(rf"{re.escape(name)}(For|Model|MTModel|LMHead|With|Double|$)", case) is not None


def test_bounds_of_the_importer_are_told() -> None:
    told = section("doors", "## .onnx files")
    assert f"opset {OLDEST} to {OPSETS[-1]}" in text("doors")
    assert f"opset {OLDEST} to {OPSETS[0] - 1} are brought to {OPSETS[0]}" in told and f"up to {MOST_ELEMENTS} elements" in told


def test_files_and_functions_of_an_artifact_are_explained() -> None:
    listed = {span for row in rows(section("artifacts", "## What is in it")) for span in spans(row[0])}
    assert {MANIFEST, artifact.WEIGHTS, artifact.FLAT, *artifact.C_FILES} <= listed
    assert f"**format {FORMAT}**" in text("artifacts") and f"FORMAT == {FORMAT}" in text("artifacts")
    header = (ROOT / "compiler/run/c/sparsec.h").read_text()
    functions = {span for row in rows(section("artifacts", "## From C")) for span in spans(row[0])}
    assert functions == set(re.findall(r"^[a-z][\w *]*?[ *](sparsec_\w+)\(", header, re.MULTILINE))


def options_in(lines: Sequence[str]) -> set[str]:
    return {option for line in lines for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line)}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_commands_of_pages_take_their_options(page: Path) -> None:
    for line in (line for block in blocks(page, "sh") for line in commands(block) if line.startswith("sparsec ")):
        takes = {option for parameter in command_of(line).params for option in parameter.opts}
        assert options_in([line]) <= takes | {"--debug"}, line
