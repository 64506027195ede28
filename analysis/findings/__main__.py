"""Does it hold here? The findings by the records published and by those of this machine.

    python -m analysis.findings [--findings FILE] [--out build/reproduction] [ROOT ...]

writes `<out>.md`, `<out>.html` and the numbers that prose may use of the findings, by the published
records, beside those of the experiments. Without local records the published ones alone are judged.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

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
from analysis.findings.retests import entries as of_retests
from analysis.records import files
from analysis.records import frame as records
from analysis.records.frame import RecordsError, repository
from analysis.rendering import numbers
from analysis.rendering.escaping import address, markdown, policy
from analysis.rendering.text import DASH, interval, number, write
from analysis.selection import views
from analysis.statistics.spread import BETWEEN_OCCASIONS

_HERE = Path(__file__).parent
# The deviation assumed between occasions, in per cent of a ratio.
_BETWEEN = 100 * math.sqrt(BETWEEN_OCCASIONS.variance)


@dataclass(frozen=True)
class Column:
    """Whose records, on what devices, of how many rounds, and what they say of each finding."""

    name: str
    devices: str
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


def columns(findings: list[Finding], frames: Mapping[str, pd.DataFrame]) -> list[Column]:
    """Of the published records and of this machine's, as frames by "published" and "local".

    Frames of their own, since the two may be of one kind of machine. A finding is judged on the
    first machine that has all of its cases, GPUs before CPUs.
    """
    found = []
    for origin, own in frames.items():
        rows: dict[str, dict[str, pd.Series]] = {}
        kinds: dict[str, str] = {}
        for machine in records.machines(own, records.reporting_machine(own)):
            of_machine = own[own["machine"] == machine]
            rows[machine] = {Path(row["path"]).stem: row for _, row in of_machine.iterrows()}
            kinds[machine] = of_machine["device_kind"].iloc[0]
        judged = [_first(finding, rows, kinds) for finding in findings]
        of_these = own[own["machine"].isin([machine for machine, _ in judged])]
        results = tuple(result for _, result in judged)
        devices = [one.device for one in results if one.device] or [views.device(own.iloc[0])]
        devices = " and ".join(dict.fromkeys(devices))
        found.append(Column(origin, devices, _rounds(of_these), results))
    return found


def _rounds(own: pd.DataFrame) -> str:
    most, occasions, hosts = (int(own[name].max()) for name in ("rounds", "occasions", "hosts"))
    if most <= 1:
        return "one round"
    words = f"{most} rounds on " + ("one occasion" if occasions <= 1 else f"{occasions} occasions")
    return words + (f", {hosts} hosts" if hosts > 1 else "")


def _first(finding: Finding, rows: dict[str, dict], kinds: dict[str, str]) -> tuple[str, Result]:
    results = [(machine, judge(finding, rows[machine], kinds[machine])) for machine in rows]
    return next((one for one in results if one[1].verdict != MISSING), results[0])


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
    environment.filters |= {"markdown": markdown, "address": address}
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
    shared |= {"between": number(_BETWEEN), "policy": Markup(policy())}
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
    return f"{text}{finding.unit}" + (
        " (one round)" if result.rounds == 1 and not finding.is_learnt else ""
    )


def entries(findings: list[Finding], column: Column, frame: pd.DataFrame) -> dict[str, dict]:
    """Number entries: of each finding its value, its published figure and its verdict; counts.

    And how many intervals held what was measured again, and the deviation between occasions that
    is assumed where there was one (%). frame: the records of the column.
    """
    found = of_retests(frame) | {"prior.between_occasions": numbers.entry(_BETWEEN, unit="%")}
    for finding, result in zip(findings, column.results, strict=True):
        key, rows = f"findings.{finding.id}", [{"paths": result.paths}]
        if result.value is None:
            one = numbers.entry(None, unit=finding.unit)
        else:
            bounds = (result.value.value, *result.value.shown)
            one = numbers.entry(*bounds, unit=finding.unit, rows=rows)
        found[key] = one | {"bare": one["text"], "device": result.device or column.devices}
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
    every = [one for one in files.read(*given.roots) if one.is_vouched]
    if not every:
        raise RecordsError(files.NOBODY)
    of_origin = {
        origin: [one for one in every if one.origin == origin] for origin in ("published", "local")
    }
    frames = {origin: records.of_files(own) for origin, own in of_origin.items() if own}
    found = columns(findings, frames)
    texts = render(findings, found, given.out, repository())
    for text, suffix in zip(texts, (".md", ".html"), strict=True):
        write(given.out.with_name(given.out.name + suffix), text)
    own = entries(findings, found[0], frames[found[0].name])
    numbers.save(own, given.out.parent / "numbers" / "findings.json")
    print(texts[0], end="")


if __name__ == "__main__":
    sys.exit(main())
