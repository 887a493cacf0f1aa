"""The conditions between sizes that an exported program came with: Python comparisons as text, read but never executed as Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shapes = Mapping[str, Sequence[int]]

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"max": max, "min": min}
#: Longer conditions are left to the shapes of the graph.
_LONGEST = 2000


class _Unknown(Exception):
    """An expression of another kind than sizes and numbers."""


@dataclass(frozen=True, eq=False)
class Guard:
    """One condition, over the axes of named inputs."""

    text: str
    tree: ast.expr

    def holds(self, shapes: Shapes) -> bool:
        """Whether it holds for inputs of these shapes; a division by zero is a no."""
        try:
            return bool(_value(self.tree, shapes))
        except ZeroDivisionError:
            return False

    @property
    def lengths(self) -> set[tuple[str, int]]:
        """The inputs and axes that it speaks of."""
        found = set()
        for node in ast.walk(self.tree):
            match node:
                case ast.Subscript(
                    value=ast.Call(func=ast.Attribute(value=ast.Subscript(slice=ast.Constant(value=str() as name)), attr="size")),
                    slice=ast.Constant(value=int() as axis),
                ):
                    found.add((name, axis))
        return found

    def __str__(self) -> str:
        return self.text.replace("L['", "").replace("']", "").replace(".size()", ".shape")


def read_guards(texts: Sequence[str], shapes: Shapes) -> tuple[Guard, ...]:
    """The conditions that speak of nothing but inputs of these names and ranks; others are left to the shapes of the graph."""
    guards = []
    for text in texts:
        if len(text) > _LONGEST:
            continue
        try:
            guard = Guard(text, ast.parse(text, mode="eval").body)
            guard.holds(shapes)
        except (_Unknown, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        guards.append(guard)
    return tuple(guards)


def _value(tree: ast.expr, shapes: Shapes) -> Any:
    match tree:
        case ast.Constant(value=int() as value):
            return value
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=ast.Subscript() as source, attr="size"), args=[]), slice=ast.Constant(value=axis)
        ):
            return _length(source, axis, shapes)
        case ast.BinOp() if type(tree.op) in _ARITHMETIC:
            return _ARITHMETIC[type(tree.op)](_value(tree.left, shapes), _value(tree.right, shapes))
        case ast.Compare(ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            return _COMPARISONS[type(op)](_value(tree.left, shapes), _value(right, shapes))
        case ast.BoolOp():
            values = [_value(part, shapes) for part in tree.values]
            return all(values) if isinstance(tree.op, ast.And) else any(values)
        case ast.UnaryOp(op=ast.USub() | ast.Not() as op):
            value = _value(tree.operand, shapes)
            return -value if isinstance(op, ast.USub) else not value
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS and tree.args:
            return _FUNCTIONS[name](*(_value(part, shapes) for part in tree.args))
    raise _Unknown


def _length(source: ast.Subscript, axis: Any, shapes: Shapes) -> int:
    """L['name'].size()[axis]."""
    match source:
        case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str() as name)) if name in shapes:
            if type(axis) is int and axis in range(len(shapes[name])):
                return shapes[name][axis]
    raise _Unknown
