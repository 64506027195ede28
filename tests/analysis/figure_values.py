"""What figures should hold: worked out from the records, not by the code that draws them.

Keys are (panel, series, x) as in a figure's CSV, values (y, low, high); a bound that is None is
not checked, one that is NaN is not drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import pandas as pd
import pytest

from analysis.experiments.extreme import views as extreme_views
from analysis.experiments.memory import views as memory_views
from analysis.records import systems
from analysis.rendering.figure_csv import HEAD, TAIL
from analysis.rendering.style import look
from analysis.selection import views
from analysis.standard import in_words
from analysis.standard.panels import MAX_PANELS, title_of

MIB = 2**20
CASE = ["dtype", "is_causal", "heads", "head_dim", "batch", "seq_len"]
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
Values = dict[tuple[str, str, object], tuple[float, float | None, float | None]]

# One unit in the last place of 1.
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def check(frame: pd.DataFrame, experiment: str, name: str, rows: list[dict]) -> None:
    """Assert that the rows of a figure's CSV hold every value that its records have.

    A figure that is not known here has its values in a test of its own.
    """
    if (experiment, name) in LISTS or name in LISTS:
        found, expected = (LISTS.get((experiment, name)) or LISTS[name])(frame, experiment, rows)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert sorted(found[key]) == pytest.approx(sorted(values)), key
    elif (experiment, name) in POINTS or name in POINTS:
        expected = (POINTS.get((experiment, name)) or POINTS[name])(frame, experiment)
        found = dict(_read(row) for row in rows)
        assert expected.keys() <= found.keys()
        for key, values in expected.items():
            for one, other in zip(found[key], values, strict=True):
                assert other is None or one == pytest.approx(other, rel=1e-9, nan_ok=True), key


def _read(row: dict) -> tuple[tuple, tuple]:
    """A row of a figure's CSV as a key and its values, rates in GFLOP/s."""
    across, *names = (key for key in row if key not in HEAD + TAIL)
    name = next((name for name in names if row[name]), "")
    unit = 1e3 if "TFLOP/s" in name else 1.0
    numbers = (row.get(key) for key in (name, "low", "high"))
    values = (_plain(value or "nan") for value in numbers)
    # A cell of a map without a ratio says why in words.
    values = tuple(math.nan if isinstance(value, str) else unit * value for value in values)
    x = _plain(row[across])
    return (row["panel"], row["series"], x if isinstance(x, str) else _rounded(x)), values


def _rounded(x: float) -> float:
    """To twelve digits, so that equal places are equal."""
    return float(f"{x:.12g}")


def _plain(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _times(frame: pd.DataFrame, experiment: str) -> Values:
    return _over_length(frame, experiment, _time)


def _memory(frame: pd.DataFrame, experiment: str) -> Values:
    return _over_length(frame, experiment, _peak)


def _rates(frame: pd.DataFrame, experiment: str) -> Values:
    return _over_length(frame, experiment, _rate, fewest=1)


def _roofline(frame: pd.DataFrame, experiment: str) -> Values:
    chosen = [s for v in views.all_views(frame, experiment) for s in v.series()[:1]]
    found: Values = {}
    for title, label, row in _points(_several(chosen), fewest=1):
        at_keys = row["kv_heads"] / row["heads"]
        moved = 2 * (1 + at_keys) * row["batch"] * row["seq_len"] * row["heads"] * row["head_dim"]
        intensity = row["useful_flops"] / (moved * BYTES[row["dtype"]])
        found[title, label, _rounded(intensity)] = _rate(row)
    return found


def _gain(frame: pd.DataFrame, experiment: str) -> Values:
    passes = ("forward", "forward_backward")
    chosen = [
        series
        for view in views.all_views(frame, experiment)
        for pass_ in passes
        for series in view.series(pass_)[:1]
    ]
    return {
        (title, label, row["seq_len"]): (ratio, None, None)
        for title, label, row, ratio in _over_dense(_several(chosen)[:MAX_PANELS])
    }


def _over_dense(chosen: list[views.Series]) -> Iterator[tuple[str, str, pd.Series, float]]:
    for one in chosen:
        dense = dict(one.timed("dense")[["seq_len", "median_ms"]].to_numpy())
        for title, label, row in _points([one], fewest=1):
            if row["system"] != "dense" and row["seq_len"] in dense:
                yield title, label, row, dense[row["seq_len"]] / row["median_ms"]


def _passes(frame: pd.DataFrame, experiment: str) -> Values:
    labels = {extreme_views.WHOLE: "one piece", "dense": "dense"}
    found: Values = {}
    for one in extreme_views.all_machines(frame, "auto"):
        for _, row in one.rows[one.rows["system"].isin([*labels, "dilated-streamed"])].iterrows():
            label = labels.get(row["system"], "streamed")
            if label == "streamed" and max(row["segment_lengths"]) >= row["seq_len"]:
                label = "streamed, to n"
            for panel, values in (
                ("time of a pass", tuple(ms / 1000 for ms in _time(row))),
                ("peak memory", _peak(row)),
            ):
                found[f"{one.view.device}, {panel}", label, row["seq_len"]] = values
    return found


def _over_length(
    frame: pd.DataFrame, experiment: str, value: Callable[[pd.Series], tuple], fewest: int = 2
) -> Values:
    chosen = [
        series
        for view in views.all_views(frame, experiment)
        for series in (memory_views.together(view) if experiment == "memory" else view.series())
    ]
    return {
        (title, label, row["seq_len"]): value(row)
        for title, label, row in _points(_several(chosen)[:MAX_PANELS], fewest)
    }


def _several(chosen: list[views.Series]) -> list[views.Series]:
    """Series that compare systems, where there are any."""
    return [one for one in chosen if one.rows["system"].nunique() > 1] or chosen


def _points(chosen: list[views.Series], fewest: int) -> Iterator[tuple[str, str, pd.Series]]:
    for one in chosen:
        for system in one.systems:
            rows = one.timed(system)
            if len(rows) >= min(fewest, len(one.lengths)):
                for _, row in rows.iterrows():
                    yield title_of(one).replace("\n", "; "), look(system).label, row


def _time(row: pd.Series) -> tuple:
    return row["median_ms"], row["low_ms"], row["high_ms"]


def _peak(row: pd.Series) -> tuple:
    return row["peak_memory_bytes"] / MIB, math.nan, math.nan


def _rate(row: pd.Series) -> tuple:
    work = row["useful_flops"] / 1e6
    return work / row["median_ms"], work / row["high_ms"], work / row["low_ms"]


def _errors(frame: pd.DataFrame, experiment: str, rows: list[dict]) -> tuple[dict, dict]:
    """By panel and series: errors, dense attention's own beside each, and the limit for it."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        (name,) = (key for key in row if key.startswith("relative rms") and row[key])
        power = int(re.search(r"10\^(-?\d+)", name)[1])
        found.setdefault((row["panel"], row["series"]), []).append(float(row[name]) * 10.0**power)
    panels = [
        (f"{view.device}, {dtype}", own[own["status"] == "ok"])
        for view in views.all_views(frame, experiment)
        for dtype, own in view.rows.groupby("dtype", sort=True)
    ]
    panels = [one for one in panels if one[1]["system"].nunique() > 1] or panels
    expected: dict[tuple[str, str], list[float]] = {}
    for panel, own in panels[:MAX_PANELS]:
        for _, row in own.iterrows():
            label = look(systems.on_one_rank(row["system"])).label
            for word, prefix, limit in (("", "", 2), (", gradient", "gradient_", 3)):
                error, base = (row[f"{prefix}{x}relative_rms"] for x in ("", "baseline_"))
                if not math.isnan(error):
                    allowed = max(limit * base, EPS[row["dtype"]])
                    marks = {"": error, ": dense": base, ": limit": allowed}
                    for mark, value in marks.items():
                        expected.setdefault((panel, f"{label}{word}{mark}"), []).append(value)
    return found, expected


def _bars(frame: pd.DataFrame, experiment: str, rows: list[dict]) -> tuple[dict, dict]:
    """By panel and bar its length, and the ratio of two records of its shape that is nearest.

    Which of several cases of a shape is shown is for the tests of views.
    """
    own = frame[(frame["experiment"] == experiment) & (frame["status"] == "ok")]
    own = own[own["pass"] == "forward"]
    pairs = own.merge(own, on=["machine", *CASE], suffixes=("_base", ""))
    pairs = pairs.assign(
        ratio=pairs["median_ms_base"] / pairs["median_ms"],
        over="speed-up over " + pairs["system_base"].map(in_words.base),
        bar=[
            f"{look(row.system).label}, {row.seq_len} tokens, batch {row.batch}"
            for row in pairs.itertuples()
        ],
    )
    found = {
        (over, row["series"]): [float(value)]
        for row in rows
        for over, value in row.items()
        if row["shape"] == "bar" and over.startswith("speed-up over") and value
    }
    known = pairs.groupby(["over", "bar"])["ratio"].agg(list).to_dict()
    return found, {
        key: [min(known[key], key=lambda ratio: abs(ratio - value))]
        for key, (value,) in found.items()
    }


POINTS: dict[object, Callable[[pd.DataFrame, str], Values]] = {
    "time": _times,
    "memory": _memory,
    "scaling": _memory,
    "rate": _rates,
    "roofline": _roofline,
    "passes": _passes,
    ("block_sparse", "speedup"): _gain,
}
LISTS: dict[object, Callable[[pd.DataFrame, str, list[dict]], tuple[dict, dict]]] = {
    "error": _errors,
    ("comprehensive", "speedup"): _bars,
    ("dilated", "speedup"): _bars,
}
