"""TVMScript read by TVM's parser: the statements of a kernel in the frame that its parameters ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.parser._core import doc, parse, utils
from tvm.script.parser.core.diagnostics import Source as Text
from tvm.script.parser.core.error import ParserError
from tvm.script.parser.core.parser import Parser

from sparsec.backends.base import Param
from sparsec.backends.cpu.script import UNITS

# The calling convention that leaves a function as it is: neither TVM's own nor a launch of one.
_PLAIN_C = 3
#: Length given to buffers whose extent is the planner's business.
FAR = 1 << 30
_SCALARS = {"i32": "T.int32", "f32": "T.float32"}


def parsed(body: Callable[..., None], params: Sequence[Param], absent: dict[str, Any]) -> Any:
    """The private TIR function."""
    parser = Parser(_Kernel(body, params), {})
    with IRBuilder() as builder:
        try:
            parser.parse({**utils.inspect_function_capture(body), **absent, "script": _NAMES})
        except ParserError as error:
            parser.report_error(error.node, error.args[0])
    return builder.get()


class _Kernel(Text):
    """The text of a function, read with the arguments, the buffers and the end that ``params`` ask for."""

    def __init__(self, body: Callable[..., None], params: Sequence[Param]) -> None:
        super().__init__(body)
        self._params = params

    def as_ast(self) -> Any:
        whole, frame = super().as_ast(), doc.parse(_frame(self._params)).body[0]
        (function,) = whole.body
        *buffers, end = frame.body
        function.args, function.returns, function.decorator_list = frame.args, frame.returns, frame.decorator_list
        function.body = [*buffers, *function.body, end]
        return whole


def _frame(params: Sequence[Param]) -> str:
    pointers = [p for p in params if p.kind not in _SCALARS]
    arguments = [f"{p.name}: {_SCALARS[p.kind]}" if p.kind in _SCALARS else f"{p.name}_: T.handle({p.dtype!r})" for p in params]
    arguments += [f"{name}: T.int32" for name in UNITS]
    buffers = [f"{p.name} = T.decl_buffer(({FAR},), {p.dtype!r}, data={p.name}_, align={_align(p.dtype)})" for p in pointers]
    head = f"@script.prim_func(private=True)\ndef kernel({', '.join(arguments)}) -> T.int32:"
    return "\n    ".join([head, *buffers, "return T.int32(0)"])


def _align(dtype: str) -> int:
    """Bytes: a caller's memory is known to be aligned for 4 at most."""
    return min(np.dtype(dtype).itemsize, 4)


def plain(function: Any, name: str) -> Any:
    """A TIR function as a C function of this name."""
    return function.with_attr("global_symbol", name).with_attr("calling_conv", _PLAIN_C)


def prim_func(function: Callable[..., Any] | None = None, private: bool = False) -> Any:
    """``T.prim_func`` without its look at the stack; ``private``, which the parser reads: without a name for callers outside the module.

    TVM reads the source file of every caller, twice for each function: behind ``torch.compile`` that was a third of the time of a first
    call. It wants them for functions in classes and for annotations kept as strings; a kernel is neither.
    """
    if function is not None:
        return _parsed(function)
    return _parsed


def _parsed(function: Callable[..., Any]) -> Any:
    return parse(function, utils.inspect_function_capture(function))


_parsed.dispatch_token = prim_func.dispatch_token = "tirx"  # type: ignore[attr-defined]
# What a kernel's frame calls by name.
_NAMES = SimpleNamespace(prim_func=prim_func)
