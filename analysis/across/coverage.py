"""Which claims a campaign would decide by which minute: expected records, judged as real ones are.

The records are those of `experiments.cost`: its times, its ends, and memory by a rule of thumb. So
what is counted is which claims get a verdict of the method, computed exactly, never which one.

    python -m analysis.across.coverage [--minutes 28]

prints it for the campaign that `python -m experiments campaign --plan --minutes 28` prints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from analysis.across.expected_records import expected_record
from analysis.claims import CARD, NOT_MEASURED, load
from analysis.claims.evidence import Evidence
from analysis.claims.schema import CLAIM, METHOD
from analysis.command import command, parser
from analysis.records import files
from analysis.records import frame as records
from experiments import cost, grid
from experiments.campaign import planning, work
from experiments.case import Case
from experiments.schema import Record

BEFORE, NEVER = "before", "-"
COLUMNS = ("claim", "writeup", "kind", "decided", "needs")


def coverage(
    selected: Iterable[tuple[Case, float]],
    minutes: Sequence[float] = (5, 10, 20, 28),
    *,
    published: Path | None = None,
    claims: Path | None = None,
) -> pd.DataFrame:
    """One row per claim on a method: `decided` is BEFORE, the first of `minutes` with a verdict, or
    NEVER.

    selected: (case of the gpu tier, expected seconds) in the order of measuring, on a GPU of the
    reference kind; a case counts by a minute when it has ended by then. `needs` says of a claim
    without verdict what it waits for and why, in the judge's words, else "". published, claims: the
    folder of records and the file of claims, by default those of this repository. ValueError for
    minutes that do not rise from above 0.
    """
    minutes = list(minutes)
    if not minutes or minutes != sorted(set(minutes)) or not minutes[0] > 0:
        raise ValueError(f"minutes={minutes!r}: expected rising numbers above 0")
    root = files.repository(Path(__file__).parent)
    claims_file = load(claims or root / "paper/claims.yaml")
    known = files.read(published or root / "results/published")
    known = [one for one in known if one.is_vouched]
    tasks = {task.case: task for task in grid.tasks("gpu")}
    expected, ends, elapsed = [], [], 0.0
    for case, seconds in selected:
        elapsed += seconds
        if elapsed > 60 * minutes[-1]:
            break
        record = Record.model_validate(expected_record(tasks[case], seconds))
        expected.append(files.File(record, Path(f"expected/round-1/{case.name}.json")))
        ends.append(elapsed / 60)
    wanted = {
        name: claim
        for name, claim in claims_file.claims.items()
        if claim.sort == CLAIM and METHOD in claim.predicate.judged_sides
    }
    found = {claim: {"decided": NEVER, "needs": ""} for claim in wanted}
    for minute in (0, *minutes):
        measured = [one for one, end in zip(expected, ends, strict=True) if end <= minute]
        evidence = Evidence(claims_file, records.of_files([*known, *measured]))
        for name, claim in wanted.items():
            if found[name]["decided"] != NEVER:
                continue
            judged = evidence.judge(claim)
            if judged.verdict in (CARD, NOT_MEASURED):
                found[name]["needs"] = f"{judged.needs}: {judged.reason}"
            else:
                found[name] |= {"decided": minute or BEFORE, "needs": ""}
    return pd.DataFrame(
        [
            (name, claim.writeup, claim.kind, found[name]["decided"], found[name]["needs"])
            for name, claim in wanted.items()
        ],
        columns=COLUMNS,
    )


def counts(frame: pd.DataFrame) -> dict:
    """Claims with a verdict before, by each minute in all, and without one."""
    tally = frame["decided"].value_counts()
    total, result = 0, {}
    for when in [BEFORE, *sorted(w for w in tally.index if not isinstance(w, str))]:
        total += int(tally.get(when, 0))
        result[when] = total
    return result | {NEVER: int(tally.get(NEVER, 0))}


def text(frame: pd.DataFrame, minutes: Sequence[float] = (5, 10, 20, 28)) -> str:
    """Plain text: counts by write-up, then a line per claim that is not decided before."""
    lines = [f"{'write-up':16}{BEFORE:>8}" + "".join(f"{f'{m:g} min':>8}" for m in minutes)]
    lines[0] += f"{'never':>8}"
    for writeup, group in [*frame.groupby("writeup", sort=False), ("all", frame)]:
        tally = [int((group["decided"] == BEFORE).sum())]
        for minute in minutes:
            tally.append(tally[-1] + int((group["decided"] == minute).sum()))
        tally.append(len(group) - tally[-1])
        lines.append(f"{writeup:16}" + "".join(f"{n:8}" for n in tally))
    lines.append("")
    for minute in minutes:
        for name in frame.loc[frame["decided"] == minute, "claim"]:
            lines.append(f"{f'{minute:g} min':>8}  {name}")
    for row in frame[frame["decided"] == NEVER].itertuples():
        lines.append(f"{'needs':>8}  {row.claim}: {row.needs[:150]}")
    return "\n".join(lines)


@command("coverage", ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Print the claims that a campaign on one card would decide, and by when."""
    options = parser(main.__doc__)
    options.add_argument("--minutes", type=float, default=28)
    minutes = options.parse_args(arguments).minutes
    steps = [m for m in (5, 10, 20) if m < minutes] + [minutes]
    reference = cost.reference_device("cuda")
    chosen = work.on_device("cuda", "gpu")
    planned = planning.by_the_clock(chosen, "cuda", reference, minutes)
    selected = {case: seconds for _, case, seconds in planned}
    print(text(coverage(selected.items(), steps), steps))


if __name__ == "__main__":
    sys.exit(main())
