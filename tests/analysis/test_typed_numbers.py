"""No measured number is typed: a number with a unit, in prose, is looked up or has an excuse."""

import json
import re
from pathlib import Path

import pytest

from analysis.claims.schema import FACTOR
from experiments.check import GRADIENT_ALLOWANCE, OUTPUT_ALLOWANCE

ROOT = Path(__file__).parents[2]
PROSE = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("paper/**/*.typ", "paper/**/*.j2", "analysis/notebooks/*.ipynb")
    for path in ROOT.glob(pattern)
)

NUMBER = r"(?<![\w.#@-])\d[\d,]*(?:\.\d+)?"
DECIMAL = r"(?<![\w.#@-])\d[\d,]*\.\d+"
UNIT = (
    r"(?:[mµn]s|s|seconds?|minutes?|hours?|[KMGT]i?B|[KMGT]?B/s|[MGTP]?FLOPs?(?:/s)?|W|J"
    r"|tokens (?:a|per) second|tokens/s|times|%|per cent)(?!\w)"
)
# "7x" is a ratio, "64 x 64" a shape.
MEASURED = re.compile(rf"{NUMBER}[ \u00a0]?{UNIT}|{NUMBER}[x×](?!\w)|{DECIMAL}")

# What may stand in prose, and why.
EXCUSED = {
    "95 %": "the confidence of every interval, and a sparsity of the grids",
    "90 %": "a sparsity of the grids",
    "98 %": "a sparsity of the grids",
    "1.25": "the factor within which a figure is reproduced; checked below",
}


def found(text: str) -> list[str]:
    """Numbers in `text` that look measured: with a unit, or with decimals."""
    return [match[0] for match in MEASURED.finditer(text) if match[0] not in EXCUSED]


def prose(path: Path) -> str:
    """What a reader reads of a source: code, strings, formulas and lengths left out."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    if path.suffix == ".j2":
        return re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|`[^`]*`", " ", text, flags=re.S)
    for code in (r"```.*?```", r"`[^`\n]*`", r"//[^\n]*", r'"[^"\n]*"', r"\$[^$]*\$"):
        text = re.sub(code, " ", text, flags=re.S)
    return re.sub(r"\b\d+(?:\.\d+)?(?:pt|em|in|fr|cm|mm|deg)\b", " ", text)


@pytest.mark.parametrize("source", PROSE)
def test_no_measured_number_is_typed(source):
    assert found(prose(ROOT / source)) == []


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("It took 12.5 ms and 3 GB.", ["12.5 ms", "3 GB"]),
        ("It is 4.01 times as fast, or 7x.", ["4.01 times", "7x"]),
        ("A rate of 1,234 tokens a second, 56 % of the ceiling.",
         ["1,234 tokens a second", "56 %"]),
        ("An exponent of 1.98 without a unit.", ["1.98"]),
        ("At 8192 tokens, batch 2, 8 heads of 64, float32, 64M to 288M tokens.", []),
        ("Section 7.", []),
        ("At 90 % sparsity, with 95 % intervals.", []),
    ],
)  # fmt: skip
def test_the_scan_sees_measured_numbers_and_leaves_shapes(text, typed):
    assert found(text) == typed


def test_a_typed_number_in_the_paper_is_seen(tmp_path):
    source = tmp_path / "s.typ"
    source.write_text(
        '#fig("x-1.5")[Took 3.2 ms.] #v(0.6em) $1.5$ `2.5` // 4.5 ms\nOf #n("a.1.5").'
    )
    assert found(prose(source)) == ["3.2 ms"]


def test_the_constants_that_the_paper_names_are_those_of_the_code():
    statistics, measuring = (
        " ".join((ROOT / f"paper/sections/{name}.typ").read_text().split())
        for name in ("statistics", "measuring")
    )
    assert f"within a factor of {FACTOR:g} of" in statistics
    assert (OUTPUT_ALLOWANCE, GRADIENT_ALLOWANCE) == (2, 3)
    assert "exceeds twice that error (three times for gradients" in measuring
