"""Sizes in files, as torch writes them for sympy, which evaluates them as Python: arithmetic of bounded numbers passes."""

from __future__ import annotations

import ast
import math
import re

#: Length of a text; bits of any number that its evaluation can reach.
LONGEST, MOST_BITS = 20_000, 4096
_SYMBOL_BITS = 63
_WORD = re.compile(r"[A-Za-z_]\w{0,79}|[-+]?[\d.]{1,40}(e[-+]?\d{1,3})?")
#: Python takes 1e9999 for infinity, sympy writes it out.
_LONG_EXPONENT = re.compile(r"[\d._][eE][-+]?[\d_]{4,}")
_PLAIN = (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp)
_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr)
_POWERS = frozenset({"Pow", "FloatPow", "PowByNatural"})
_SHIFTS = frozenset({"LShift", "RShift"})
_LARGEST = frozenset({"Max", "Min", "Add", "Where", "And", "Or", "Not", "Eq", "Ne", "Equality", "Unequality", "Identity"}) | frozenset(
    {"GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat"}
)
_PRODUCTS = frozenset({"Mul", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing"}) | frozenset(
    {"IntTrueDiv", "FloatTrueDiv", "Rational", "Integer", "Float", "Abs"}
)


class _Refused(Exception):
    pass


def refused_size(text: str) -> str:
    """Why a size is not evaluated; "" for arithmetic on numbers and symbols below 2**MOST_BITS."""
    if len(text) > LONGEST:
        return f"has more than {LONGEST} characters"
    if _LONG_EXPONENT.search(text):
        return f"may have more than {MOST_BITS} bits"
    try:
        _bits(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, MemoryError, RecursionError):
        return "is no expression"
    except _Refused as error:
        return str(error)
    return ""


def _bits(node: ast.AST) -> float:
    """Bits of the largest number that evaluating a node can reach."""
    match node:
        case ast.Constant(value=bool() | float() | None):
            bits = 64.0
        case ast.Constant(value=int() as number):
            bits = float(number.bit_length())
        case ast.Constant(value=str() as word) if _WORD.fullmatch(word):
            bits = MOST_BITS if re.match(r"[-+\d.]+e", word) else max(_SYMBOL_BITS, 4 * len(word))
        case ast.Name(id=name) if not name.startswith("_"):
            bits = _SYMBOL_BITS
        case ast.Call(func=ast.Name(id="Symbol"), args=args, keywords=keywords):
            for part in (*args, *(keyword.value for keyword in keywords)):
                _bits(part)
            bits = _SYMBOL_BITS
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            parts = [_bits(part) for part in (*args, *(keyword.value for keyword in keywords))]
            bits = _of_call(name, args, parts)
        case ast.BinOp(op=op) if not isinstance(op, _BINARY):
            raise _Refused("has a power or another operator that torch writes as a function")
        case _ if isinstance(node, _PLAIN):
            bits = 1 + sum(_bits(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
        case _:
            raise _Refused("is more than arithmetic")
    if bits > MOST_BITS:
        raise _Refused(f"may have more than {MOST_BITS} bits")
    return bits


def _of_call(name: str, args: list[ast.expr], parts: list[float]) -> float:
    if name in _LARGEST:
        return max(parts, default=0.0) + math.log2(len(parts) + 1)
    if name in _PRODUCTS:
        return sum(parts)
    if name in _POWERS and len(parts) == 2:
        return parts[0] * max(1, abs(_literal(args[1])))
    if name in _SHIFTS and len(parts) == 2:
        return parts[0] + abs(_literal(args[1]))
    raise _Refused("is more than arithmetic")


def _literal(node: ast.expr) -> float:
    """The number that an exponent is."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_literal(operand)
        case ast.Call(func=ast.Name(id="Integer" | "Float"), args=[operand, *_]):
            return _literal(operand)
        case ast.Call(func=ast.Name(id="Rational"), args=[above, below]):
            return _literal(above) / _literal(below)
    raise _Refused("has an exponent that is no number")
