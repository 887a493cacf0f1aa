"""TVMScript's decorator of functions, without its look at the stack.

TVM reads the source file of every caller, twice for each function: behind ``torch.compile`` that was a third of the time of a first call.
It wants them for functions in classes and for annotations kept as strings; a kernel is neither.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.parser._core import parse, utils


def prim_func(function: Callable[..., Any] | None = None, private: bool = False) -> Any:
    """``T.prim_func``; ``private``, which the parser reads from the source: without a name for callers outside the module."""
    if function is not None:
        return _parsed(function)
    return _parsed


def _parsed(function: Callable[..., Any]) -> Any:
    return parse(function, utils.inspect_function_capture(function))


_parsed.dispatch_token = prim_func.dispatch_token = "tirx"  # type: ignore[attr-defined]
