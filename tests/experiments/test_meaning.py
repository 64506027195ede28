"""Digests follow what files mean: words and layout count for nothing, values count."""

import hashlib
import json

import pytest

from experiments.digest import ROOT
from experiments.grid import GRIDS
from experiments.meaning import meaning


def code(text):
    return meaning(".py", text.encode())


PLAIN = """
def scaled(x, factor=2.0, *, name="it's"):
    if factor:
        return x * factor
    return f"{name!r}: {x:>{factor}}"
"""


@pytest.mark.parametrize(
    "same",
    [
        '"""Words."""\n' + PLAIN,
        PLAIN.replace(
            'name="it\'s"):', 'name="it\'s"):\n    """Multiplied.\n\n    x: ms.\n    """'
        ),
        PLAIN.replace("x * factor", "(\n            x\n            * factor  # why\n        )\n"),
        PLAIN.replace('"it\'s"', "'it\\'s'").replace("2.0", "2.00"),
        PLAIN.replace("(x,", "(\n    x,\n").replace("'s\")", "'s\",\n)"),
    ],
)
def test_words_and_layout_of_code_mean_nothing(same):
    assert same != PLAIN and code(same) == code(PLAIN)


def test_the_meaning_of_code_is_the_same_on_every_python():
    everything = (
        PLAIN
        + """
@a.b
class A(B, metaclass=C): ...
async def g(*a: int, **k) -> "list[A]":
    with open(f"{a}") as b, c:
        return [await x async for x in b if x] or {**k, 1: 2j} or a[1:, ...] or b"\\x00" or "é"
match x:
    case {"a": [1, *_], **rest} if rest: pass
    case A(b=None) | "c": del x
lambda x, /, y=f"{1:}": (yield)
"""
    )
    assert hashlib.sha256(code(everything)).hexdigest()[:16] == "ae5850237758cab6"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.0", "2"),
        ("2.0", "2.5"),
        ("x * factor", "factor * x"),
        ("*, ", ""),
        ("it's", "its"),
        ("!r", ""),
        (">", "<"),
        ("        return x * factor", '        "not a docstring"\n        return x * factor'),
    ],
)
def test_what_code_does_is_its_meaning(old, new):
    assert old in PLAIN and code(PLAIN.replace(old, new)) != code(PLAIN)


def test_a_body_of_words_is_an_empty_one():
    assert code('class A(E):\n    """Words."""\n') == code("class A(E):\n    pass\n")
    assert code("if a:\n    b()\n") != code("if a:\n    pass\nelse:\n    b()\n")
    assert code("def f():\n    return ''\n") != code("def f():\n    return\n")


@pytest.mark.parametrize(
    "use",
    [
        "print(__doc__)",
        "print(f.__doc__)",
        'getattr(f, "__doc__")',
        "from inspect import getdoc",
        "Model.model_json_schema()",
    ],
)
def test_docstrings_that_the_code_reads_are_code(use):
    with_use = f'"""One."""\ndef f():\n    """One."""\n{use}\n'
    for count in (1, 2):
        assert code(with_use.replace("One", "Two", count)) != code(with_use)
    without = with_use.replace(use, "")
    assert code(without.replace("One", "Two")) == code(without)


def test_values_are_the_meaning_of_data():
    for path in [*GRIDS.glob("*.yaml"), *GRIDS.glob("campaign/*.yaml")]:
        text = path.read_bytes()
        said = meaning(".yaml", text)
        assert meaning(".yaml", b"# A comment.\n" + text.replace(b"\n", b"  # one more\n")) == said
        assert meaning(".yaml", text.replace(b"forward", b"backward", 1)) != said
    table = (ROOT / "models/kernels/dilated.json").read_bytes()
    assert meaning(".json", json.dumps(json.loads(table), indent=3).encode()) == meaning(
        ".json", table
    )
    assert meaning(".json", b'{"a": 1}') != meaning(".json", b'{"a": 2}')


def test_what_cannot_be_parsed_counts_byte_by_byte():
    assert meaning(".py", b"def") == b"def"
    assert meaning(".json", b"[1,") == b"[1,"
    assert meaning(".yaml", b"a: &anchor 1\n\t") == b"a: &anchor 1\n\t"
    assert meaning(".typ", b"// words") == b"// words"
