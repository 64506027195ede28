"""Does it hold here? The findings by the records published and by those of this machine.

    python -m analysis.findings [--findings FILE] [--out build/reproduction] [ROOT ...]

writes `<out>.md`, `<out>.html` and the numbers that prose may use of the findings, by the published
records, beside those of the experiments. Without local records the published ones alone are judged.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from analysis.command import command, parser
from analysis.findings.findings import (
    HOLDS,
    MISSING,
    VERDICTS,
    Finding,
    FindingsError,
    Result,
    judge,
    load,
)
from analysis.records import frame as records
from analysis.records.frame import RecordsError, repository
from analysis.rendering import numbers
from analysis.rendering.text import DASH, interval, number, write
from analysis.selection import views

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """The results of one machine; name: whose they are. device: what it is, in_words: in short."""

    name: str
    device: str
    in_words: str
    rounds: str
    results: tuple[Result, ...]

    @property
    def headline(self) -> str:
        """How many hold."""
        verdicts = [one.verdict for one in self.results]
        others = [v for v in dict.fromkeys(verdicts) if v != HOLDS]
        rest = ", ".join(f"{verdicts.count(one)} {one}" for one in others)
        text = f"{verdicts.count(HOLDS)} of {len(verdicts)} findings hold"
        return text + (f" ({rest})" if rest else "")


def columns(findings: list[Finding], frame: pd.DataFrame) -> list[Column]:
    """Published first, then this machine's where it has records."""
    found = []
    for origin, name in (("published", "published"), ("local", "this machine")):
        own = frame[frame["origin"] == origin]
        if own.empty:
            continue
        own = own[own["machine"] == records.reporting_machine(own)]
        rows = {Path(row["path"]).stem: row for _, row in own.iterrows()}
        kind = own["device_kind"].iloc[0]
        results = tuple(judge(finding, rows, kind) for finding in findings)
        most = int(own["rounds"].max())
        rounds = "one round" if most == 1 else f"{most} rounds"
        if own["hosts"].max() > 1:
            rounds += f", {int(own['hosts'].max())} hosts"
        device = own["device"].iloc[0]
        if kind == "cpu":
            device += f", {own['cores'].iloc[0]} cores"
        found.append(Column(name, device, views.device(own.iloc[0]), rounds, results))
    return found


def render(findings: list[Finding], found: list[Column], out: Path, root: Path) -> tuple[str, str]:
    """The Markdown and the page, to lie at `out` (.md, .html); records are below `root`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
    )
    rows = [
        {
            "finding": one,
            "published": DASH if one.published is None else f"{one.published:g}{one.unit}",
            "results": [
                {"text": _text(one, column.results[place]), "of": column.results[place]}
                for column in found
            ],
        }
        for place, one in enumerate(findings)
    ]
    base = os.path.relpath(root, out.parent.resolve())
    shared = {"columns": found, "rows": rows, "base": base, "MISSING": MISSING}
    return tuple(
        environment.get_template(f"reproduction.{kind}.j2").render(**shared)
        for kind in ("md", "html")
    )


def _text(finding: Finding, result: Result) -> str:
    if result.value is None:
        return DASH
    value = result.value
    if value.low == value.high:  # counted, not sampled
        return f"{number(value.value)}{finding.unit}"
    text = interval(value.value, *value.shown)
    return f"{text}{finding.unit}" + (" (one round)" if result.rounds == 1 else "")


def entries(findings: list[Finding], column: Column) -> dict[str, dict]:
    """Number entries: of each finding its value, its published figure and its verdict; counts."""
    found = {}
    for finding, result in zip(findings, column.results, strict=True):
        key, rows = f"findings.{finding.id}", [{"paths": result.paths}]
        if result.value is None:
            one = numbers.entry(None, unit=finding.unit)
        else:
            bounds = (result.value.value, *result.value.shown)
            one = numbers.entry(*bounds, unit=finding.unit, rows=rows)
        found[key] = one | {"bare": one["text"], "device": column.in_words}
        printed = None if finding.published is None else f"{finding.published:g}"
        old = numbers.entry(finding.published, unit=finding.unit, text=printed)
        found[f"{key}.published"] = old
        found[f"{key}.verdict"] = numbers.entry(result.verdict, rows=rows)
    verdicts = [one.verdict for one in column.results]
    counts = {"total": len(verdicts)} | {word: verdicts.count(word) for word in VERDICTS}
    for word, count in counts.items():
        name = word.replace(" ", "-")
        found[f"findings.count.{name}"] = numbers.entry(count, unit="findings")
    return found


@command("findings", FindingsError, RecordsError)
def main(arguments: list[str] | None = None) -> None:
    """Which findings hold by the published records, and which on this machine."""
    options = parser(main.__doc__, out="build/reproduction", records=True)
    options.add_argument("--findings", type=Path, default=Path("paper/findings.yaml"))
    given = options.parse_args(arguments)
    findings = load(given.findings)
    found = columns(findings, records.load(*given.roots))
    texts = render(findings, found, given.out, repository())
    for text, suffix in zip(texts, (".md", ".html"), strict=True):
        write(given.out.with_name(given.out.name + suffix), text)
    numbers.save(entries(findings, found[0]), given.out.parent / "numbers" / "findings.json")
    print(texts[0], end="")


if __name__ == "__main__":
    sys.exit(main())
