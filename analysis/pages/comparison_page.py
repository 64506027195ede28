"""Machines side by side on one page: what differs, a figure of ratios, every case.

    python -m analysis.pages.comparison_page [--out build/compare.html] [ROOT ...]

compares the machine that the prose reports with each other one that has records;
`python -m experiments compare A B --page FILE` writes the same page of any two. The page is one
file without a script: figures are in it, and what is long folds.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.command import command, parser
from analysis.comparison import pairs, report, sides
from analysis.comparison.forest import forest
from analysis.comparison.pairs import Comparison, Mean, Pair
from analysis.pages.template import filled
from analysis.records import files
from analysis.records.files import RecordsError
from analysis.rendering.style import look, svg
from analysis.rendering.text import interval, write

KINDS = {"hardware": "Hardware", "software": "Software", "measuring": "When and how long"}


def render(found: Sequence[Comparison], alone: str = "") -> str:
    """The page of some comparisons; without any, `alone` says which machine there is."""
    return filled(
        "comparison",
        alone=alone,
        comparisons=[_shown(one, place) for place, one in enumerate(found, start=1)],
        reading=report.READING,
        no_interval=report.NO_INTERVAL,
    )


def save(found: Sequence[Comparison], out: Path, alone: str = "") -> None:
    """Write the page."""
    write(out, render(found, alone))


def _shown(found: Comparison, place: int) -> dict:
    """What the template shows of a comparison."""
    drawn = base64.b64encode(svg(forest(found))).decode() if found.timed else ""
    return {
        "id": f"comparison-{place}",
        "names": [one.asked for one in (found.a, found.b)],
        "sides": [report.described(one) for one in (found.a, found.b)],
        "kinds": [
            (title, rows) for kind, title in KINDS.items() if (rows := found.differences.of(kind))
        ],
        "same": report.named(found.differences.same),
        "unknown": found.differences.unknown,
        "code": found.code_in_words(),
        "is_same_code": all(one.code == pairs.SAME for one in found.timed),
        "counts": report.counts(found),
        "figure": drawn,
        "has_gaps": any(math.isnan(one.ratio.low) for one in found.timed),
        "means": [_mean(one) for one in found.means],
        "apart": [_case(one) for one in found.of_other_backends],
        "of_one_side": [(p.system, p.label, report.outcomes(p)) for p in found.of_one_side],
        "left_out": [(p.system, p.label, p.setting) for p in found.left_out],
        "only": [
            (name.upper(), len(cases), report.by_system(cases))
            for name in "ab"
            if (cases := found.only(name))
        ],
    }


def _mean(mean: Mean) -> dict:
    return {
        "system": mean.system,
        "label": look(mean.system).label,
        "heading": pairs.HEADINGS[mean.code],
        "count": len(mean.pairs),
        "ratio": report.ratio_text(mean.ratio),
        "cases": [_case(one) for one in mean.pairs] if mean.system else [],
    }


def _case(pair: Pair) -> dict:
    return {
        "system": pair.system,
        "label": pair.label,
        "times": [
            interval(row["median_ms"], row["low_ms"], row["high_ms"]) for row in (pair.a, pair.b)
        ],
        "rounds": f"{pair.a['rounds']} / {pair.b['rounds']}",
        "ratio": report.ratio_text(pair.ratio),
        "backends": pair.backends,
        "code": pair.code,
    }


@command("comparison page", RecordsError)
def main(arguments: list[str] | None = None) -> None:
    """The machines that have records, side by side on one page."""
    options = parser(main.__doc__, out="build/compare.html", records=True)
    given = options.parse_args(arguments)
    first, *others = sides.of_machines(files.read(*given.roots)).values()
    save([pairs.compare(first, one) for one in others], given.out, report.described(first))


if __name__ == "__main__":
    sys.exit(main())
