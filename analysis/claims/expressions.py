"""Arithmetic on published figures, as ranges of what is printed alike."""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Mapping

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS = {"min": min, "max": max}


def value_range(expression: str, ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Smallest and largest value over the corners of the names' ranges.

    Exact where the expression is monotone in each name. Raises ValueError on anything but
    numbers, known names, + - * / ** and min, max.
    """
    tree = ast.parse(expression, mode="eval").body
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & set(ranges))
    corners = itertools.product(*(ranges[name] for name in names))
    values = [_value(tree, dict(zip(names, corner, strict=True))) for corner in corners]
    return min(values), max(values)


def _value(node: ast.AST, names: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_value(argument, names) for argument in arguments)
    raise ValueError(f"cannot evaluate {ast.unparse(node)!r}")
