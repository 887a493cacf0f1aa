"""Files of torch.export.save, read without running what is in them.

torch reads such a file with pickle where safer ways fail, evaluates size expressions and conditions as Python, writes names into Python
code, and runs functions named in the graph. So the archive is checked first: whole by its check sums, without pickled objects other than
tensors, without machine code, every size arithmetic, every name an identifier, every function an operator.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import operator
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import load_pt2

from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel
from sparsec.guards import read_guards

_AGAIN = "Export the model again with torch.export.save."
_OBJECTS = re.compile(r"(^|/)(custom_obj_|opaque_obj_)[^/]*$")
_CODE = re.compile(r"(^|/)data/aotinductor/|\.so$")
_CONFIG = re.compile(r"/data/(weights|constants)/[^/]+_config\.json$")
_PICKLED = re.compile(r"/data/(sample_inputs|weights|constants)/[^/]+\.pt$")
_MODEL = re.compile(r"/models/[^/]+\.json$")
_NAMES = (
    ("getitem", "add", "sub", "mul", "floordiv", "mod", "truediv", "pow", "neg", "pos", "abs"),
    ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "lshift", "rshift"),
)
_OPERATORS = frozenset(getattr(operator, name) for names in _NAMES for name in names)
_WORD = re.compile(r"\w+|[-+]?[\d.]+(e[-+]?\d+)?")
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Name, ast.Load, ast.operator)
_MORE_NODES = (ast.unaryop, ast.boolop, ast.cmpop, ast.Call, ast.keyword)
#: Keys of names that become Python code.
_IDENTIFIERS = frozenset(
    {"name", "as_name", "forward_arg_names", "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values"}
)
#: Functions of size expressions, as torch writes them.
_FUNCTIONS = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod", "Max", "Min", "Abs", "Identity", "Where"}
    | {"FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "IntTrueDiv", "FloatTrueDiv", "FloatPow", "PowByNatural", "LShift", "RShift"}
    | {"CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat", "And", "Or", "Not", "Eq", "Ne", "Equality", "Unequality"}
    | {"GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"}
)


def load_program(path: Path) -> ExportedProgram:
    """The program of a ``.pt2`` file. InvalidInput for a file that is no whole program, UnsupportedModel for one that holds code."""
    try:
        _check_archive(path)
        program = _load(path)
        _check_program(path, program)
    except (SparsecError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _broken(path, error) from error
    return program


# What is in the archive


def _check_archive(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise InvalidInput("The file is no exported program: it is no zip archive.", where=str(path), hint=_AGAIN)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        _check_entries(path, archive, entries)
        for name, entry in entries.items():
            if _OBJECTS.search(name) or _CODE.search(name):
                raise _unsafe(path, f"It holds {name}, which runs code when it is read.")
            if _PICKLED.search(name):
                _check_pickle(path, name, archive.read(entry))
            elif _MODEL.search(name):
                _check_model(path, json.loads(archive.read(entry)))
            elif _CONFIG.search(name):
                _check_payloads(path, archive, name, json.loads(archive.read(entry)))


def _check_entries(path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> None:
    """Whole, plainly stored, no name twice, one folder: so torch reads the same archive as is checked here."""
    if len(entries) != len(archive.infolist()) or len({name.partition("/")[0] for name in entries}) != 1:
        raise InvalidInput("The archive has the same name twice or several roots.", where=str(path), hint=_AGAIN)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise InvalidInput("The archive is compressed, which torch.export.save never does.", where=str(path), hint=_AGAIN)
    damaged = archive.testzip()
    if damaged is not None:
        raise InvalidInput("The file is damaged.", where=str(path), why=f"The check sum of {damaged} is wrong.", hint=_AGAIN)
    if not any(map(_MODEL.search, entries)):
        why = "It has no models/*.json, so it was not written by torch.export.save of this version."
        raise InvalidInput("The archive holds no exported program.", where=str(path), why=why, hint=_AGAIN)


def _check_pickle(path: Path, name: str, content: bytes) -> None:
    """Tensors and plain containers only; torch would fall back to running the pickle."""
    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, f"{name} holds more than tensors.") from error


def _check_payloads(path: Path, archive: zipfile.ZipFile, config: str, content: Any) -> None:
    folder = config.rpartition("/")[0]
    for payload in content["config"].values():
        name = f"{folder}/{payload['path_name']}"
        if payload["use_pickle"]:
            _check_pickle(path, name, archive.read(name))
        elif not archive.getinfo(name).file_size and all(size.get("as_int") != 0 for size in payload["tensor_meta"]["sizes"]):
            raise InvalidInput("The file is damaged.", where=str(path), why=f"{name} is empty.", hint=_AGAIN)


def _check_model(path: Path, content: Any) -> None:
    for key, text in _texts(content):
        if key == "expr_str":
            _check_size(path, text)
        elif key in _IDENTIFIERS and text and not text.isidentifier():
            raise _unsafe(path, f"The name {text[:80]!r} is no identifier.")


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in JSON with the key that leads to it; entries of lists and names of values with that of the list or dictionary."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, dict):
        for name, value in content.items():
            yield key if key.endswith("_values") else "", name
            yield from _texts(value, name)


def _check_size(path: Path, text: str) -> None:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise InvalidInput("A size is no expression.", where=str(path), why=repr(text[:80]), hint=_AGAIN) from error
    if not all(map(_is_arithmetic, ast.walk(tree))):
        raise _unsafe(path, f"The size {text[:80]!r} is more than arithmetic.")


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Call():
            return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        case ast.Constant(value=str() as text):
            return bool(_WORD.fullmatch(text))
        case ast.Name():
            return not node.id.startswith("_")
    return isinstance(node, (*_NODES, *_MORE_NODES))


# What became of it


def _load(path: Path) -> ExportedProgram:
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        programs = load_pt2(str(path)).exported_programs
    finally:
        logger.setLevel(level)
    if len(programs) != 1:
        raise InvalidInput("The file holds several programs.", where=str(path), why=", ".join(programs), hint="Save them one by one.")
    return next(iter(programs.values()))


def _check_program(path: Path, program: ExportedProgram) -> None:
    """Every function is an operator, every constant has the shape and dtype that the graph gives it; conditions speak of sizes only."""
    for node in program.graph.nodes:
        if node.op == "call_function" and not _is_operator(node.target):
            raise _unsafe(path, f"{node.name} calls {node.target}, which is no operator.")
    for name in program.call_spec.in_spec.child(1).context or ():
        if not str(name).isidentifier():
            raise _unsafe(path, f"The name {name!r} is no identifier.")
    taken = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    ranks = {name: [1] * value.dim() for name, value in taken.items() if isinstance(value, Tensor)}
    program._guards_code = [guard.text for guard in read_guards(program._guards_code or (), ranks)]
    _check_weights(path, program, taken)


def _check_weights(path: Path, program: ExportedProgram, values: Mapping[str, Any]) -> None:
    for spec in program.graph_signature.input_specs:
        stored = program.state_dict.get(str(spec.target), program.constants.get(str(spec.target)))
        value = values.get(spec.arg.name)
        if isinstance(stored, Tensor) and isinstance(value, Tensor) and (stored.shape, stored.dtype) != (value.shape, value.dtype):
            why = f"{spec.target} is {list(stored.shape)} {stored.dtype}, and {list(value.shape)} {value.dtype} in the graph."
            raise InvalidInput("The file's weights do not fit its graph.", where=str(path), why=why, hint=_AGAIN)


def _is_operator(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target is not torch.ops.aten.from_file.default
    if isinstance(target, torch._ops.HigherOrderOperator):
        return True
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    return target in _OPERATORS or module == "math" or (module == "torch" and name.startswith("sym_"))


def _unsafe(path: Path, why: str) -> UnsupportedModel:
    hint = "Export a model of tensors and torch operators only."
    return UnsupportedModel("The file may run code and is not read.", where=str(path), why=why, hint=hint)


def _broken(path: Path, error: Exception) -> InvalidInput:
    lines = [*str(error).splitlines(), ""]
    return InvalidInput("The file is no whole exported program.", where=str(path), why=f"{type(error).__name__}: {lines[0]}", hint=_AGAIN)
