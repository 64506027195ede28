"""The write-ups' own advice, beside that of one machine's records at the same shapes.

python -m analysis.advise.recommendations [--out build/tables/advice] [--machine ID] [ROOT ...]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pandas as pd

from analysis import claims
from analysis.advise.answer import Advice, Option, advise, gain_of
from analysis.advise.question import Question, Refused
from analysis.claims.comparisons import Ordering
from analysis.claims.stated_numbers import Support
from analysis.command import command, parser
from analysis.records import frame as records
from analysis.records import systems
from analysis.rendering.style import look
from analysis.rendering.table import Cell, Table, brief, measured, save
from analysis.rendering.text import tokens
from analysis.selection import published, views
from models.registry import VARIANTS

COLUMNS = (
    *("advice", "at", "advised", "its ms", "best of its kind", "that ms"),
    *("best dense ms", "best of all", "best ms", "borne out"),
)
NO_RECORD, ITSELF = "not measured", "itself"
# What the ids of all these claims have in common, left out of the table.
SHARED = ".recommend."


@dataclass(frozen=True)
class Recommendation:
    """Advice of a write-up at one shape: take `system`, or, if `against`, anything but that.

    system: ours, None without a variant. name: as published. over: our systems that the write-up
    compares it with. by: "time" or "memory". batch: the nearest one measured, None without any.
    """

    claim: str
    seq_len: int
    batch: int | None
    system: str | None
    name: str
    by: str
    over: tuple[str, ...] = ()
    against: bool = False


def recommendations(claims_file: claims.ClaimsFile, view: views.View) -> list[Recommendation]:
    """What the write-up of `view` recommends for one device, in its order.

    "Only X will do above a length" is tested at the shortest measured length above it.
    """
    found, evidence = [], claims.Evidence(claims_file, view.rows)
    for claim in claims_file.claims.values():
        predicate = claim.predicate
        if claim.section != "recommendations" or claim.writeup != view.experiment:
            continue
        if not isinstance(predicate, (Ordering, Support)):
            continue
        shape = evidence.shape(claim, predicate.at.given())
        against = isinstance(predicate, Support)
        seq_len = shape.get("seq_len")
        if against:
            seq_len = _shortest(view, shape.get("min_seq_len", 0))
        if seq_len is None or (shape.get("world_size") or 1) > 1:
            continue
        named, *others = [predicate.system] if against else [*predicate.order, *predicate.among]
        known, system = claims_file.systems[named], _system(claims_file, named)
        over = tuple(_system(claims_file, other) for other in others)
        by = "time" if against else predicate.quantity
        batch = shape.get("batch", 1)
        batch = batch if against else view.batch_for(batch, seq_len)
        # The growth of a process on a CPU does not resolve a memory of a few MiB.
        if not against and predicate.device_kind not in (None, view.rows.iloc[0]["device_kind"]):
            batch = None
        found.append(
            Recommendation(claim.id, seq_len, batch, system, known.name, by, over, against)
        )
    return found


def _system(claims_file: claims.ClaimsFile, name: str) -> str:
    known = claims_file.systems[name]
    return systems.key(known.beside or known.variant, known.sparsity)


def _shortest(view: views.View, at_least: int) -> int | None:
    """The shortest length from `at_least` on that a forward pass of batch 1 was timed at."""
    rows, fixed = view.rows, view.setting
    rows = rows[(rows["pass"] == "forward") & (rows["status"] == "ok") & (rows["batch"] == 1)]
    rows = rows[(rows["heads"] == fixed.heads) & (rows["head_dim"] == fixed.head_dim)]
    longer = rows[rows["seq_len"] >= at_least]["seq_len"]
    return None if longer.empty else int(longer.min())


def _answers(
    claims_file, frame: pd.DataFrame, machine: str
) -> tuple[pd.DataFrame, list, list[str]]:
    """Records of a machine, a row per recommendation, and the claims that it has no record for."""
    own = frame[frame["machine"] == machine]
    answered, absent = [], []
    for experiment in claims_file.writeups:
        if experiment not in set(own["experiment"]):
            continue
        view = views.view(frame, experiment, machine)
        for one in recommendations(claims_file, view):
            row = _line(_comparable(frame, one), view, one)
            if row[COLUMNS.index("best of all")] is None:
                absent.append(one.claim)
            else:
                answered.append(row)
    return own, answered, absent


def advice_table(frame: pd.DataFrame, machine: str = "auto") -> Table:
    """Every recommendation for one device beside the answer of `advise` at its shape.

    "borne out": "yes" if the advised system is better than each that its write-up compares it
    with, "no" if one of these is better, "not told apart" if that is within the intervals. "best of
    its kind" and "best of all" are out of everything that was measured there.
    """
    claims_file = claims.load(published.CLAIMS)
    reporting = records.reporting_machine(frame, machine)
    names = [reporting] if machine != "auto" else records.machines(frame, reporting)
    # The machine with most answers; of several with as many, the first in order.
    own, answered, absent = max(
        (_answers(claims_file, frame, name) for name in names), key=lambda found: len(found[1])
    )
    note = (
        f"Advice x: y is claim x{SHARED}y, borne out if better than what the write-up compares it "
        "with. b: batch. Times are medians in ms, intervals in the CSV. "
        f"Measured on {views.device(own.iloc[0])} at the write-up's heads and causality, in "
        "its type where that was measured, else in float32; a length measured in others only, in "
        "those. Systems of a kind give the same result; sparse and dilated attention give another "
        "than dense. Where memory is what the advice is for, best is least memory."
    )
    if own["device_kind"].iloc[0] == "cpu":
        note += " On a CPU a rank has one core, so rings are compared with each other only."
    if absent:
        note += f" Nothing was measured at the shape of {', '.join(absent)}."
    return Table("What the write-ups advise, and what the records do", COLUMNS, answered, note)


def _comparable(frame: pd.DataFrame, one: Recommendation) -> pd.DataFrame:
    """The records to compare with: on a CPU, where a rank has one core, a ring's are of rings."""
    variant = systems.parts(one.system)[0] if one.system else None
    if variant is None or VARIANTS[variant].shard_order is None:
        return frame
    return frame[(frame["device_kind"] != "cpu") | frame["world_size"].notna()]


def _line(frame: pd.DataFrame, view: views.View, one: Recommendation) -> tuple[Cell, ...]:
    start = (_short(one.claim), f"{tokens(one.seq_len)}, b{one.batch}")
    name = look(one.system).label if one.system else one.name
    name = f"not {name}" if one.against else name
    nothing = (None,) * 6
    near = view.nearest
    if one.batch is None or near.empty:
        return (*start, name, *nothing, NO_RECORD)
    first, here = near.iloc[0], one.seq_len in set(near["seq_len"])
    question = Question(
        one.seq_len,
        int(first["heads"]),
        int(first["head_dim"]),
        batch=one.batch,
        dtype=first["dtype"] if here else None,
        is_causal=bool(first["is_causal"]) if here else None,
        device=view.machine,
        by=one.by,
    )
    try:
        answer = advise(frame, question)
    except Refused:
        return (*start, name, *nothing, NO_RECORD)
    option = next((o for o in answer.ranked if one.system in o.systems), None)
    first = answer.best()
    dense = _option(answer.best("dense"))[1]
    if option is None:
        return (*start, name, None, None, None, dense, *_option(first), NO_RECORD)
    kind, borne_out = answer.best(option.computes), _borne_out(answer, option, one)
    best = (ITSELF, _option(kind)[1]) if kind is option else _option(kind)
    return (*start, name, _option(option)[1], *best, dense, *_option(first), borne_out)


def _short(claim: str) -> str:
    return claim.replace(SHARED, ": ")


def _borne_out(answer: Advice, option: Option, one: Recommendation) -> str:
    if one.against:
        return "no, it runs"
    others = [other for other in answer.ranked if {*other.systems} & {*one.over}]
    gains = [gain_of(option, other, one.by) for other in others]
    if not gains:
        return NO_RECORD
    if min(gains) < 1:
        return "no"
    return "yes" if min(gains) > 1 else "not told apart"


def _option(option: Option | None) -> tuple[Cell, Cell]:
    if option is None:
        return None, None
    time = option.time
    return look(option.system).label, brief(measured(time.value, *time.shown))


@command("advice", records.RecordsError, claims.ClaimsError)
def main(arguments: list[str] | None = None) -> None:
    """Write the table in its three forms; 1 with one line on stderr for unusable input."""
    options = parser(advice_table.__doc__, "build/tables/advice", records=True)
    options.add_argument("--machine", default="auto")
    given = options.parse_args(arguments)
    frame = records.vouched(records.load(*given.roots))
    save(advice_table(frame, given.machine), given.out)


if __name__ == "__main__":
    sys.exit(main())
