"""What the records of `extreme` say as numbers by key."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.extreme import views as extreme_views
from analysis.experiments.extreme.views import GLOBAL, SAME_SCHEDULE, STREAMED, WHOLE
from analysis.rendering.numbers import entry
from analysis.rendering.text import tokens
from analysis.selection import views
from analysis.standard import number_entries, quantities
from analysis.standard.quantities import Quantity

_SCHEDULES = {"same": SAME_SCHEDULE, "global": GLOBAL}


def of_streams(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """Key -> entry; the keys do not depend on what was measured."""
    one = extreme_views.extreme(frame, view.machine)
    found: dict[str, dict] = {}
    for key, schedule in _SCHEDULES.items():
        rows = one.streamed(schedule)
        ends = (rows.iloc[0], rows.iloc[-1]) if len(rows) else (None, None)
        for end, row in zip(("shortest", "longest"), ends, strict=True):
            found |= {f"{key}.{end}.{k}": v for k, v in _pass(row).items()}
        for word, ratio in (
            ("per_token", extreme_views.time_per_token),
            ("memory_ratio", extreme_views.memory_ratio),
        ):
            over = Quantity(None) if ends[0] is None else ratio(*reversed(ends))
            found[f"{key}.{word}"] = number_entries.of(over, ends, "{:.3f}")
    found |= _dense(one)
    whole = one.of(WHOLE)
    found["whole.longest"] = entry(
        int(whole["seq_len"].max()) if len(whole) else None,
        unit="tokens",
        text=tokens(whole["seq_len"].max()) if len(whole) else None,
        rows=[whole.iloc[-1]] if len(whole) else [],
    )
    for system in (STREAMED, "dilated-streamed-mapped", "dilated-streamed-host"):
        rows = one.streamed() if system == STREAMED else one.of(system)
        both = sorted(set(rows["seq_len"]) & set(whole["seq_len"]))
        row, piece = (x[x["seq_len"] == both[-1]].iloc[0] if both else None for x in (rows, whole))
        found |= number_entries.gain(f"vs_whole.{system}", piece, row)
    return found


def _pass(row: pd.Series | None) -> dict[str, dict]:
    """One streamed pass: its tokens, time, rate, source, memory, error."""
    if row is None:
        keys = ("tokens", "tokens.exact", "time", "rate", "source", "memory", "error", "rows")
        return {key: entry(None) for key in keys}
    n, rows = int(row["seq_len"]), [row]
    error = extreme_views.error(row)
    # Over seconds, not 1000 over ms as in the tables: the same but for the last bit.
    per_second = quantities.time(row, "s").amount.inverted(row["batch"] * n)
    return {
        "tokens": entry(n, unit="tokens", text=tokens(n), rows=rows),
        "tokens.exact": number_entries.tokens(n, rows=rows),
        "time": number_entries.of(quantities.time(row, "s"), rows),
        "rate": number_entries.of(Quantity(per_second, "tokens/s"), rows),
        "source": entry(row["source_ms"] / 1000, unit="s", rows=rows),
        "memory": number_entries.memory(row),
        "error": entry(error, text=f"{error:.2f}", rows=rows),
        "rows": entry(int(row["rows_checked"]), unit="rows", rows=rows),
    }


def _dense(one: extreme_views.Extreme) -> dict[str, dict]:
    """How far dense attention was measured, and its continuation at the longest streamed length."""
    dense, streamed = one.of("dense"), one.streamed()
    last = dense.iloc[-1] if len(dense) else None
    found = {
        "dense.longest": number_entries.tokens(
            None if last is None else int(last["seq_len"]), [last]
        ),
        "dense.longest.time": number_entries.time(last),
        "dense.extrapolated": entry(None),
        "dense.extrapolated.over": entry(None),
    }
    longest = streamed.iloc[-1] if len(streamed) else None
    at = None if longest is None else one.dense_at(int(longest["seq_len"]))
    if at is None:
        return found
    time, rows = at[0], [*(row for _, row in dense.iterrows()), longest]
    over = Quantity(time.over(longest["median_ms"]))
    found["dense.extrapolated"] = number_entries.of(quantities.duration(time, "h"), rows)
    found["dense.extrapolated.over"] = number_entries.of(over, rows)
    return found
