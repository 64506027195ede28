"""What a file says to a program, as bytes: the same when only its words or its layout change.

Python counts by its parsed code without docstrings, YAML and JSON by the values in them, all else
byte by byte. The same on Python 3.11 to 3.14.
"""

from __future__ import annotations

import ast
import json
from functools import cache

from experiments.plain_yaml import PlainYamlError, loads

# A module that uses one of these keeps its docstrings: they are values there.
_DOCSTRING_READERS = {"__doc__", "getdoc", "model_json_schema"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# How a string was written (u""), and comments.
_NO_MEANING = {"kind", "type_comment", "type_ignores"}


@cache
def meaning(suffix: str, content: bytes) -> bytes:
    """What counts of a file's `content`; suffix: of its name, ".py" for example.

    What cannot be parsed counts byte by byte, and so do YAML files beyond `experiments.plain_yaml`.
    """
    try:
        if suffix == ".py":
            return _of_code(content)
        if suffix == ".json":
            return json.dumps(json.loads(content)).encode()
        if suffix in (".yaml", ".yml"):
            return json.dumps(loads(content.decode())).encode()
    except (SyntaxError, ValueError, PlainYamlError):
        pass
    return content


def _of_code(content: bytes) -> bytes:
    tree = ast.parse(content)
    nodes = list(ast.walk(tree))
    keeps_docstrings = any(map(_reads_docstrings, nodes))
    for node in nodes:
        if isinstance(node, _DOCUMENTED) and not keeps_docstrings:
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        elif isinstance(node, ast.JoinedStr):
            node.values = _less_empty(node.values)
        elif isinstance(node, ast.FormattedValue):
            spec = node.format_spec
            node.format_spec = spec if spec and _less_empty(spec.values) else None
    written: list[str] = []
    _write(tree, written)
    return "".join(written).encode()


def _less_empty(values: list) -> list:
    """The parts of an f-string without the empty ones that Python 3.12 adds."""
    return [x for x in values if not (isinstance(x, ast.Constant) and x.value == "")]


def _reads_docstrings(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _DOCSTRING_READERS
    if isinstance(node, ast.Attribute):
        return node.attr in _DOCSTRING_READERS
    if isinstance(node, ast.alias):
        return node.name in _DOCSTRING_READERS
    return isinstance(node, ast.Constant) and node.value == "__doc__"


def _write(value, written: list[str]) -> None:
    """Append a node as text. Not `ast.dump`, whose text differs between versions of Python.

    Fields that are empty are left out, of which a later version has more, and so is `pass`, which
    stands where a body would else be empty.
    """
    if isinstance(value, ast.AST):
        written.append(f"{type(value).__name__}(")
        for name in _field_names(type(value)):
            part = getattr(value, name, None)
            if isinstance(part, list):
                part = [x for x in part if not isinstance(x, ast.Pass)]
            if part is not None and part != []:
                written.append(f"{name}=")
                _write(part, written)
        written.append(")")
    elif isinstance(value, list):
        written.append("[")
        for part in value:
            _write(part, written)
            written.append(",")
        written.append("]")
    else:
        # Which characters `repr` shows as they are depends on the version.
        written.append(ascii(value))


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(sorted(set(kind._fields) - _NO_MEANING))
