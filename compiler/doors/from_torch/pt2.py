"""Files of torch.export.save, read without running what is in them.

torch reads such a file with pickle where safer ways fail, evaluates size expressions and conditions as Python, writes names into Python
code, and runs functions named in the graph. So the archive is checked first (``pt2_archive``), torch reads the checked bytes, and of what
it makes of them every function must be an operator.
"""

from __future__ import annotations

import io
import logging
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import load_pt2

from sparsec.doors.from_torch.pt2_archive import AGAIN, checked_content, unsafe
from sparsec.errors import InvalidInput, SparsecError
from sparsec.ir.shape_guards import read_guards

_NAMES = (
    ("getitem", "add", "sub", "mul", "floordiv", "mod", "truediv", "pow", "neg", "pos", "abs"),
    ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "lshift", "rshift"),
)
_OPERATORS = frozenset(getattr(operator, name) for names in _NAMES for name in names)
#: Operators of torch that take graphs and call nothing else.
_OF_GRAPHS = frozenset(
    {"cond", "while_loop", "while_loop_stack_output", "scan", "map_impl", "associative_scan", "invoke_subgraph", "strict_mode", "out_dtype"}
    | {"wrap_with_autocast", "wrap_with_set_grad_enabled", "tag_activation_checkpoint", "wrap_activation_checkpoint", "hints_wrapper"}
    | {"auto_functionalized", "auto_functionalized_v2", "flex_attention"}
)


def load_program(path: Path) -> ExportedProgram:
    """The program of a ``.pt2`` file. InvalidInput for a file that is no whole program, UnsupportedModel for one that holds code."""
    try:
        program = _load(path, checked_content(path))
        _check_program(path, program)
    except (SparsecError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _broken(path, error) from error
    return program


def _load(path: Path, content: bytes) -> ExportedProgram:
    """Of the bytes that were checked: the file may be another one by now."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        programs = load_pt2(io.BytesIO(content)).exported_programs
    finally:
        logger.setLevel(level)
    (program,) = programs.values()
    return program


def _check_program(path: Path, program: ExportedProgram) -> None:
    """Every function is an operator, every constant has the shape and dtype that the graph gives it; conditions speak of sizes only."""
    for node in program.graph.nodes:
        if node.op == "call_function" and not _is_operator(node.target):
            raise unsafe(path, f"{node.name} calls {node.target}, which is no operator.")
    for name in program.call_spec.in_spec.child(1).context or ():
        if not str(name).isidentifier():
            raise unsafe(path, f"The name {name!r} is no identifier.")
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
            raise InvalidInput("The file's weights do not fit its graph.", where=str(path), why=why, hint=AGAIN)


def _is_operator(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target is not torch.ops.aten.from_file.default
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.name() in _OF_GRAPHS
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    return target in _OPERATORS or module == "math" or (module == "torch" and name.startswith("sym_"))


def _broken(path: Path, error: Exception) -> InvalidInput:
    lines = [*str(error).splitlines(), ""]
    return InvalidInput("The file is no whole exported program.", where=str(path), why=f"{type(error).__name__}: {lines[0]}", hint=AGAIN)
