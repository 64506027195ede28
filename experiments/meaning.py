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
_READ_AS = {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name"}
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
            return code(content)[0]
        if suffix == ".json":
            return json.dumps(json.loads(content)).encode()
        if suffix in (".yaml", ".yml"):
            return json.dumps(loads(content.decode())).encode()
    except (SyntaxError, ValueError, PlainYamlError):
        pass
    return content


@cache
def code(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The meaning of Python code and the names that it imports, from one parse of it.

    `from package import name` gives both `package` and `package.name`; relative imports give none.
    """
    tree = ast.parse(content)
    writer = _Writer(with_docstrings=False)
    writer.node(tree)
    if writer.reads_docstrings:
        writer = _Writer(with_docstrings=True)
        writer.node(tree)
    return "".join(writer.written).encode(), tuple(writer.imported)


class _Writer:
    """Writes a tree as text. Not `ast.dump`, whose text differs between versions of Python.

    Fields that are empty are left out, of which a later version has more, and so is `pass`, which
    stands where a body would else be empty.
    """

    def __init__(self, *, with_docstrings: bool):
        self.with_docstrings = with_docstrings
        self.reads_docstrings = False
        self.written: list[str] = []
        self.imported: list[str] = []

    def node(self, node: ast.AST) -> None:
        kind = type(node)
        self._note(kind, node)
        begin, fields = _form(kind)
        self.written.append(begin)
        for name, told in fields:
            part = getattr(node, name, None)
            if isinstance(part, list):
                part = self._parts(kind, name, part)
                if part:
                    self.written.append(f"{told}[")
                    for one in part:
                        self._value(one)
                        self.written.append(",")
                    self.written.append("]")
            elif part is not None and not (name == "format_spec" and not _less_empty(part.values)):
                self.written.append(told)
                self._value(part)
        self.written.append(")")

    def _value(self, value) -> None:
        if isinstance(value, ast.AST):
            self.node(value)
        else:
            # Which characters `repr` shows as they are depends on the version.
            self.written.append(ascii(value))

    def _parts(self, kind: type, name: str, parts: list) -> list:
        """Those of a field's parts that mean something."""
        if kind is ast.JoinedStr:
            return _less_empty(parts)
        if name == "body" and kind in _DOCUMENTED and not self.with_docstrings:
            first = parts[0] if parts and isinstance(parts[0], ast.Expr) else None
            if first and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                self._note(ast.Constant, first.value)
                parts = parts[1:]
        return [x for x in parts if not isinstance(x, ast.Pass)]

    def _note(self, kind: type, node: ast.AST) -> None:
        """What `node` imports, and whether it reads docstrings."""
        if kind is ast.Constant:
            self.reads_docstrings |= node.value == "__doc__"
        elif kind in _READ_AS:
            self.reads_docstrings |= getattr(node, _READ_AS[kind]) in _DOCSTRING_READERS
        elif kind is ast.Import:
            self.imported += [alias.name for alias in node.names]
        elif kind is ast.ImportFrom and node.module and node.level == 0:
            self.imported += [node.module, *(f"{node.module}.{x.name}" for x in node.names)]


def _less_empty(values: list) -> list:
    """The parts of an f-string without the empty ones that Python 3.12 adds."""
    return [x for x in values if not (isinstance(x, ast.Constant) and x.value == "")]


@cache
def _form(kind: type) -> tuple[str, tuple[tuple[str, str], ...]]:
    """How a node of `kind` begins, and its fields, each with what is written before it."""
    names = sorted(set(kind._fields) - _NO_MEANING)
    return f"{kind.__name__}(", tuple((name, f"{name}=") for name in names)
