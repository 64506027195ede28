"""Two sets of records side by side: ratios of medians with intervals, case by case."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from analysis.records import frame as records
from analysis.rendering.text import interval
from analysis.selection import views
from analysis.standard import in_words
from analysis.statistics.intervals import geometric_mean_speedup, speedup
from experiments.case import COLUMNS

KEY = ["experiment", *COLUMNS]


def compare(a: Path, b: Path) -> str:
    """A text table of `time in a / time in b` (above 1: b is faster) for the cases in both.

    a, b: folders of records, or single records. RecordsError if one holds a case
    twice (two machines), a record of another schema, or nothing in common.
    """
    left, right = (_one_record_per_case(root) for root in (a, b))
    joined = left.merge(right, on=KEY, suffixes=("_a", "_b"), validate="one_to_one")
    if joined.empty:
        raise records.RecordsError(f"{a} and {b}: no case in common")
    lines = [
        f"a: {a} ({len(left)} records), b: {b} ({len(right)}), in both: {len(joined)}",
        "time in a / time in b, above 1: b is faster; 95 % intervals",
    ]
    pairs = []
    for row in joined.to_dict("records"):
        case = in_words.case(row, "batch", "heads", "type", "causal", "pass")
        label = f"{row['experiment']} {row['system_a']}, {row['seq_len']} tokens, {case}"
        label += "" if math.isnan(row["sparsity"]) else f", {views.blocks_in_words(row)}"
        statuses = (row["status_a"], row["status_b"])
        if statuses != ("ok", "ok"):
            lines.append(f"{label}: {statuses[0]} / {statuses[1]}")
            continue
        pairs.append((row["samples_a"], row["samples_b"]))
        ratio = speedup(*pairs[-1])
        changed = "" if ratio.low <= 1 <= ratio.high or math.isnan(ratio.low) else "  *"
        lines.append(f"{label}: {interval(ratio.value, ratio.low, ratio.high)}{changed}")
    if pairs:
        mean = geometric_mean_speedup(pairs)
        lines.append(f"geometric mean: {interval(mean.value, mean.low, mean.high)}")
    return "\n".join(lines)


def _one_record_per_case(root: Path) -> pd.DataFrame:
    frame = records.load(root)
    twice = frame[frame.duplicated(KEY)]
    if not twice.empty:
        raise records.RecordsError(
            f"{root}: holds {twice.iloc[0]['path']} and another record of that case; "
            "name the folder of one machine"
        )
    return frame
