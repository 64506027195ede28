"""Reads the plain part of YAML that grid files use, with the standard library only.

`python -m experiments run` must work where only torch and numpy are installed.
Read: block mappings and sequences, one-line flow collections, numbers, true,
false, null, plain and quoted text, comments. Anything else is an error with its
line. The tests hold it to PyYAML on every grid.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache

_KEY = re.compile(r"([A-Za-z_][\w.-]*):(?:\s+(.*))?$")
_TOKEN = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[\[\]{},:]|[^\[\]{},:"'\s][^\[\]{},:]*)""")
_COMMENT = re.compile(r"""((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'#]|(?<=\S)#)*)""")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FRACTION = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(e[-+]?[0-9]+)?", re.I)
# Numbers of YAML or of Python, not of both, or that are not finite.
_NO_PLAIN_NUMBER = re.compile(
    r"[-+]?(0[0-9_]+|0[xob][0-9a-f_]+|[0-9][0-9_]*(:[0-9_]+)+(\.[0-9_]*)?"
    r"|[0-9][0-9.]*_[0-9_.]*(e[-+]?[0-9]+)?|\.?(inf|nan)|infinity)",
    re.I,
)
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


class PlainYamlError(ValueError):
    """Text outside the subset; the message names the line."""


@dataclass
class _Line:
    number: int
    indent: int
    text: str


def loads(text: str) -> object:
    """The value that `text` stands for; PlainYamlError names the offending line."""
    lines = []
    for number, raw in enumerate(text.splitlines(), start=1):
        if "\t" in raw:
            raise PlainYamlError(f"line {number}: tab character")
        content = _COMMENT.match(raw).group(1).rstrip()
        if content:
            lines.append(_Line(number, len(content) - len(content.lstrip()), content.lstrip()))
    if not lines:
        return None
    try:
        value = _block(lines, lines[0].indent)
    except RecursionError:
        raise PlainYamlError("nested too deeply") from None
    if lines:
        raise PlainYamlError(f"line {lines[0].number}: unexpected indentation")
    return value


def _block(lines: list[_Line], indent: int):
    if lines[0].text.startswith("- "):
        items = []
        while lines and lines[0].indent == indent and lines[0].text.startswith("- "):
            line = lines[0]
            rest = line.text[2:].lstrip()
            if _KEY.match(rest):
                line.indent += len(line.text) - len(rest)
                line.text = rest
                items.append(_block(lines, line.indent))
            else:
                lines.pop(0)
                items.append(_flow(rest, line.number))
        return items
    result = {}
    while lines and lines[0].indent == indent:
        line = lines.pop(0)
        match = _KEY.match(line.text)
        if not match:
            raise PlainYamlError(f"line {line.number}: expected `key: value`, got {line.text!r}")
        key, rest = match.groups()
        if key in result:
            raise PlainYamlError(f"line {line.number}: key {key!r} stands twice")
        if rest:
            result[key] = _flow(rest, line.number)
        elif lines and (
            lines[0].indent > indent
            or (lines[0].indent == indent and lines[0].text.startswith("- "))
        ):
            result[key] = _block(lines, lines[0].indent)
        else:
            result[key] = None
    return result


def _flow(text: str, number: int):
    if text[0] not in "[{\"'":
        return _scalar(text.strip(), number)
    tokens = _TOKEN.findall(text)
    if "".join(tokens).replace(" ", "") != text.replace(" ", ""):
        raise PlainYamlError(f"line {number}: cannot read {text!r}")
    value = _flow_value(tokens, number)
    if tokens:
        raise PlainYamlError(f"line {number}: unexpected {tokens[0]!r}")
    return value


def _flow_value(tokens: list[str], number: int):
    token = _next(tokens, number)
    if token not in "[{":
        return _scalar(token.strip(), number)
    close = {"[": "]", "{": "}"}[token]
    items: list = []
    while tokens and tokens[0] != close:
        item = _flow_value(tokens, number)
        if token == "{":
            if not isinstance(item, str):
                raise PlainYamlError(f"line {number}: expected text as a key, got {item!r}")
            if _next(tokens, number) != ":":
                raise PlainYamlError(f"line {number}: expected ':' after {item!r}")
            item = (item, _flow_value(tokens, number))
            if item[0] in dict(items):
                raise PlainYamlError(f"line {number}: key {item[0]!r} stands twice")
        items.append(item)
        if tokens and tokens[0] == ",":
            tokens.pop(0)
        elif not tokens or tokens[0] != close:
            raise PlainYamlError(f"line {number}: expected ',' or {close!r}")
    _next(tokens, number)
    return dict(items) if token == "{" else items


def _next(tokens: list[str], number: int) -> str:
    if not tokens:
        raise PlainYamlError(f"line {number}: bracket not closed on its line")
    return tokens.pop(0)


def _scalar(text: str, number: int):
    try:
        return _plain(text)
    except PlainYamlError as error:
        raise PlainYamlError(f"line {number}: {error}") from None


@lru_cache(maxsize=4096)  # A long grid says the same few words again and again.
def _plain(text: str):
    if text[:1] == '"':
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise PlainYamlError(f"cannot read {text}") from None
    if text[:1] == "'":
        return text[1:-1]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for form, kind in ((_INTEGER, int), (_FRACTION, float)):
        if form.fullmatch(text):
            # More digits than 64 bits have, Python would refuse, or be long about.
            if not math.isfinite(float(text)) or (kind is int and abs(float(text)) >= 2**63):
                raise PlainYamlError(f"{text[:20]}: too large a number")
            return kind(text)
    if _NO_PLAIN_NUMBER.fullmatch(text):
        expected = "a decimal number without _, or text in quotes"
        raise PlainYamlError(f"{text}: expected {expected}")
    return text
