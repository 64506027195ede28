"""What the records of one experiment say, as numbers by key."""

from __future__ import annotations

import math

import pandas as pd

from analysis import published, records, scaling, views
from analysis.numbers import entry
from analysis.text import DASH, interval

MIB = 2**20
_NO_ENDS = (("shortest", None), ("longest", None))


def of_experiment(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> dict[str, dict]:
    """Key -> entry for `experiment`, spoken by `machine`.

    The keys do not depend on what was measured: a key that is not here is a misspelling, a
    number that was not measured is an entry with the value null. `.word` keys hold "faster than",
    "slower than" or "as fast as, within the interval," for sentences that hold either way.
    """
    view = views.view(frame, experiment, machine)
    found = {
        **_machine(frame, view),
        **_cells(view),
        **_series(view),
        **_errors(records.of_experiment(frame, experiment)),
        **_rate(view),
    }
    return {f"{experiment}.{key}": value for key, value in found.items()}


def _machine(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    rows = records.of_experiment(frame, view.experiment)
    row = view.rows.iloc[0]
    near = view.nearest()
    words = {
        "id": view.machine,
        "device": view.device,
        "kind": row["device_kind"],
        "cpu": row["cpu"],
        "torch": row["torch"],
        "python": row["python"],
        "dtype": near.iloc[0]["dtype"] if len(near) else view.rows.iloc[0]["dtype"],
    }
    found = {f"machine.{key}": entry(str(word)) for key, word in words.items()}
    found["machine.cores"] = entry(int(row["cores"]))
    timed = view.rows[view.rows["status"] == "ok"]
    counts = {
        "records.total": len(rows),
        "records.machines": rows["machine"].nunique(),
        "records.here": len(view.rows),
        "records.timed": len(timed),
        "records.lost": len(view.rows) - len(timed),
        "records.samples": sum(len(one) for samples in timed["samples"] for one in samples),
    }
    return found | {key: entry(int(count)) for key, count in counts.items()}


def _cells(view: views.View) -> dict[str, dict]:
    """Times, memory and speed-ups at the published shapes, and the published figures."""
    found: dict[str, dict] = {}
    systems = [*published.VARIANTS, *published.without_variant(view.experiment)]
    for wanted, n in published.SHAPES[view.experiment]:
        # The write-up with one batch a length is measured at the nearest batch there is.
        exact = view.experiment == "comprehensive"
        batch = wanted if exact else view.batch_for(wanted, n)
        at = f"b{wanted}.n{n}"
        found[f"batch.{at}"] = entry(batch, unit="sequences")
        base, dense = (view.cell(v, batch, n) for v in (published.BASE, published.DENSE))
        for system in systems:
            for quantity, unit in (("time", "ms"), ("memory", "MiB"), ("speedup", "")):
                old = published.figure(view.experiment, system, wanted, n, quantity)
                text = DASH if old is None else f"{old:.2f}"
                found[f"published.{quantity}.{system}.{at}"] = entry(old, unit=unit, text=text)
        for variant in published.VARIANTS:
            row = view.cell(variant, batch, n)
            found[f"time.{variant}.{at}"] = _time(row)
            found[f"memory.{variant}.{at}"] = _memory(row)
            found |= _gain(f"speedup.{variant}.{at}", base, row)
            found |= _gain(f"vs_dense.{variant}.{at}", dense, row)
    return found


def _series(view: views.View) -> dict[str, dict]:
    """Growth with length, and what that means against dense attention."""
    one = next(iter(view.series()), None)
    lengths = one.lengths if one else []
    found = {
        "series.shortest": entry(lengths[0] if one else None, unit="tokens"),
        "series.longest": entry(lengths[-1] if one else None, unit="tokens"),
        "series.points": entry(len(lengths)),
        "series.batch": entry(one.batch if one else None),
        "series.heads": entry(one.heads if one else None),
        "series.dtype": entry(one.dtype if one else None),
        "series.pattern": entry(one.pattern if one else None),
    }
    fits = {}
    for variant in published.VARIANTS:
        for quantity in ("time", "memory"):
            fit = one.growth(variant, quantity) if one else None
            fits[variant, quantity] = fit
            k = fit.exponent if fit else None
            text = interval(k.value, k.low, k.high, "{:.2f}") if k else None
            rows = [] if one is None else [one.row(variant, n) for n in lengths]
            found[f"growth.{quantity}.{variant}"] = (
                entry(k.value, k.low, k.high, text=text, rows=rows) if k else entry(None)
            )
        both = [n for n in lengths if views.ratio(one.row(published.DENSE, n), one.row(variant, n))]
        for end, n in (("shortest", both[0]), ("longest", both[-1])) if both else _NO_ENDS:
            pair = [one.row(v, n) if both else None for v in (published.DENSE, variant)]
            found |= _gain(f"series.vs_dense.{variant}.{end}", *pair)
            found[f"series.vs_dense.{variant}.{end}.tokens"] = entry(n, unit="tokens")
        dense, own = fits[published.DENSE, "time"], fits[variant, "time"]
        found[f"crossover.{variant}"] = _crossover(dense, own)
    return found


def _crossover(dense, own) -> dict:
    """Length from which the system stays on its side of dense attention."""
    if dense is None or own is None or dense is own:
        return entry(None)
    if max(dense.n_range[0], own.n_range[0]) >= min(dense.n_range[1], own.n_range[1]):
        return entry(None, unit="tokens", text="no length in common")
    cross = scaling.crossover(dense, own)
    if cross.n is None:
        return entry(None, unit="tokens", text="not in the measured range")
    text = interval(cross.n.value, cross.n.low, cross.n.high, "{:,.0f}") + " tokens"
    return entry(cross.n.value, cross.n.low, cross.n.high, "tokens", text)


def _errors(rows: pd.DataFrame) -> dict[str, dict]:
    """The worst error of all machines, as a multiple of dense attention's own there."""
    found = {"error.cases": entry(int(rows["relative_rms"].notna().sum()))}
    for name, prefix in (("output", ""), ("gradient", "gradient_")):
        ratio = rows[f"{prefix}relative_rms"] / rows[f"{prefix}baseline_relative_rms"]
        if ratio.notna().any():
            worst = ratio.idxmax()
            row = rows.loc[worst]
            found[f"error.{name}.worst"] = entry(
                float(ratio[worst]), text=f"{ratio[worst]:.2f}", rows=[row]
            )
            found[f"error.{name}.worst.system"] = entry(row["published_name"])
        else:
            found[f"error.{name}.worst"] = found[f"error.{name}.worst.system"] = entry(None)
    return found


def _rate(view: views.View) -> dict[str, dict]:
    """Useful GFLOP/s of strided views and of dense attention, at the longest case of both.

    Where causality differs the non-causal case speaks: there both do full tiles of work.
    """
    rows = view.rows[(view.rows["pass"] == "forward") & (view.rows["status"] == "ok")]
    rows = rows.sort_values(["is_causal", "seq_len", "path"], ascending=[True, False, True])
    found = {f"rate.{v}": entry(None) for v in (published.DENSE, "dilated-sdpa")}
    found |= {"rate.ratio": entry(None), "rate.tokens": entry(None)}
    for _, row in rows[rows["variant"] == "dilated-sdpa"].iterrows():
        dense = views.dense_twin(rows, row)
        if dense is None:
            continue
        rates = {}
        for variant, one in ((published.DENSE, dense), ("dilated-sdpa", row)):
            bounds = [
                one["useful_flops"] / one[c] / 1e6 for c in ("median_ms", "high_ms", "low_ms")
            ]
            rates[variant] = bounds[0]
            found[f"rate.{variant}"] = entry(*bounds, unit="GFLOP/s", rows=[one])
        ratio = rates["dilated-sdpa"] / rates[published.DENSE]
        found["rate.ratio"] = entry(ratio, text=f"{ratio:.2f}", rows=[dense, row])
        found["rate.tokens"] = entry(int(row["seq_len"]), unit="tokens", rows=[row])
        break
    return found


def _time(row: pd.Series | None) -> dict:
    if row is None or row["status"] != "ok":
        return entry(None, unit="ms", rows=[row])
    return entry(row["median_ms"], row["low_ms"], row["high_ms"], "ms", rows=[row])


def _memory(row: pd.Series | None) -> dict:
    if row is None or row["status"] != "ok" or math.isnan(row["peak_memory_bytes"]):
        return entry(None, unit="MiB", rows=[row])
    return entry(float(row["peak_memory_bytes"]) / MIB, unit="MiB", rows=[row])


def _gain(key: str, base: pd.Series | None, own: pd.Series | None) -> dict[str, dict]:
    """How many times as fast as `base`, and the word for it."""
    itself = base is not None and own is not None and base["path"] == own["path"]
    gain = None if itself else views.ratio(base, own)
    if gain is None:
        return {key: entry(None), f"{key}.word": entry("not compared with")}
    if gain.low > 1:
        word = "faster than"
    elif gain.high < 1:
        word = "slower than"
    else:
        word = "as fast as, within the interval,"
    return {
        key: entry(gain.value, gain.low, gain.high, rows=[base, own]),
        f"{key}.word": entry(word, rows=[base, own]),
    }
