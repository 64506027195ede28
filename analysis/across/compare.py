"""Two sets of records side by side, as of two rounds: ratios of times, case by case."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from analysis.records import frame as records
from analysis.rendering.text import interval
from analysis.selection import views
from analysis.standard import in_words
from analysis.statistics.intervals import Interval, Side, unpaired_speedup
from analysis.statistics.rounds import occasions
from experiments.case import COLUMNS
from experiments.rounds import in_utc


def compare(a: Path, b: Path) -> str:
    """A text table of `time in a / time in b` (above 1: b is faster) for the cases in both.

    a, b: folders of records, as of a machine or a round, or single records. Rounds of the two have
    nothing in common, so nothing cancels in a ratio; where a or b is of one round, it has no
    interval. What differs between occasions counts, unless all rounds of both are of one.
    RecordsError if one holds a case twice (two machines), a record of another schema, or
    nothing in common.
    """
    left, right = (_one_row_per_case(root) for root in (a, b))
    joined = left.merge(right, on=[*COLUMNS], suffixes=("_a", "_b"), validate="one_to_one")
    if joined.empty:
        raise records.RecordsError(f"{a} and {b}: no case in common")
    lines = [
        f"a: {a} ({len(left)} cases), b: {b} ({len(right)}), in both: {len(joined)}",
        "time in a / time in b, above 1: b is faster; 95 % intervals",
    ]
    pairs, together = [], _is_of_one_occasion(pd.concat([left, right]))
    for row in joined.to_dict("records"):
        case = in_words.case(row, "batch", "heads", "type", "causal", "pass")
        label = f"{row['system_a']}, {row['seq_len']} tokens, {case}"
        label += "" if math.isnan(row["sparsity"]) else f", {views.blocks_in_words(row)}"
        statuses = (row["status_a"], row["status_b"])
        if statuses != ("ok", "ok"):
            lines.append(f"{label}: {statuses[0]} / {statuses[1]}")
            continue
        pairs.append((row["samples_a"], row["samples_b"]))
        ratio = _ratio(joined, [pairs[-1]], together)
        changed = "" if ratio.low <= 1 <= ratio.high or math.isnan(ratio.low) else "  *"
        lines.append(f"{label}: {interval(ratio.value, ratio.low, ratio.high)}{changed}")
    if pairs:
        mean = _ratio(joined, pairs, together)
        lines.append(f"geometric mean: {interval(mean.value, mean.low, mean.high)}")
    return "\n".join(lines)


def _ratio(joined: pd.DataFrame, pairs: list[tuple], together: bool) -> Interval:
    sides = zip(*pairs, strict=True)
    spreads = (joined[f"spread_{side}"].iloc[0] for side in "ab")
    return unpaired_speedup(*map(Side, sides, spreads), is_of_one_occasion=together)


def _is_of_one_occasion(rows: pd.DataFrame) -> bool:
    """Whether no case began more than an hour after the one before, on any host but one."""
    times = [in_utc(time) for of_case in rows["began"] for _, time in of_case]
    found = occasions({str(place): (time, time) for place, time in enumerate(times)})
    both = zip(rows["machine"], rows["samples"], strict=True)
    hosts = {(machine, one.host) for machine, samples in both for one in samples}
    return len(hosts) == len({*found.values()}) == 1


def _one_row_per_case(root: Path) -> pd.DataFrame:
    frame = records.load(root).drop_duplicates("path")
    twice = frame[frame.duplicated([*COLUMNS])]
    if not twice.empty:
        raise records.RecordsError(
            f"{root}: holds {twice.iloc[0]['path']} and another record of that case; "
            "name the folder of one machine"
        )
    return frame
