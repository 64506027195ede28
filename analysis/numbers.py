"""Every number that prose may say, by key.

An entry is {value, low, high, unit, text, records}: `text` is what is printed, an en dash where
nothing was measured; `records` are the paths it came from. A notebook writes those of its
experiment with `of_experiment`; the command line joins them with the verdicts' counts:

    python -m analysis.numbers --out build/numbers.json build/numbers/*.json build/claims.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

from analysis import published, records, scaling, views
from analysis.text import DASH, interval, number, write

MIB = 2**20
VERDICTS = ("reproduced", "not reproduced", "refuted", "not testable here")


class NumbersError(ValueError):
    """Numbers that cannot be joined or found: names the file and the key."""


def entry(value, low=None, high=None, unit: str = "", text: str | None = None, rows=()) -> dict:
    """One number (or word) with its text. NaN bounds become null; `rows` are its records."""
    bounds = [None if b is None or math.isnan(b) else float(b) for b in (low, high)]
    if text is None:
        if value is None or isinstance(value, str):
            text = value or DASH
        elif None in bounds:
            text = number(value)
        else:
            text = interval(value, *bounds)
    paths = [row["path"] for row in rows if row is not None]
    return {
        "value": value,
        "low": bounds[0],
        "high": bounds[1],
        "unit": unit,
        "text": text,
        "records": list(dict.fromkeys(paths)),
    }


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


def join(files: list[Path]) -> dict[str, dict]:
    """The flat dictionary of all number files and the claims file, keys sorted.

    Raises NumbersError on a key that two files have, and on a file that is neither.
    """
    joined: dict[str, dict] = {}
    origin: dict[str, Path] = {}
    for file in files:
        for key, value in _read(file).items():
            if key in joined:
                raise NumbersError(f"{file}: key {key!r}: is in {origin[key]} too")
            joined[key], origin[key] = value, file
    return dict(sorted(joined.items()))


def lookup(numbers: dict[str, dict], key: str, where: str, field: str = "text"):
    """`numbers[key][field]`. Raises NumbersError naming the key and `where` it was asked for."""
    if key not in numbers:
        raise NumbersError(f"{where}: unknown number {key!r}")
    return numbers[key][field]


def _read(file: Path) -> dict[str, dict]:
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise NumbersError(f"{file}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise NumbersError(f"{file}: not JSON (truncated?): {error}") from None
    if isinstance(data, dict) and isinstance(data.get("claims"), list):
        return _verdict_counts(data["claims"])
    if not isinstance(data, dict) or not all(
        isinstance(value, dict) and "text" in value for value in data.values()
    ):
        raise NumbersError(f"{file}: neither numbers nor verdicts")
    return data


def _verdict_counts(verdicts: list[dict]) -> dict[str, dict]:
    groups = {"all": verdicts}
    for verdict in verdicts:
        groups.setdefault(verdict["writeup"], []).append(verdict)
    found = {}
    for name, group in groups.items():
        counts = Counter(verdict["verdict"] for verdict in group)
        found[f"claims.{name}.total"] = entry(len(group), unit="claims")
        for word in VERDICTS:
            key = f"claims.{name}.{word.replace(' ', '-')}"
            found[key] = entry(counts[word], unit="claims")
        judged = len(group) - counts[VERDICTS[-1]]
        found[f"claims.{name}.judged"] = entry(judged, unit="claims")
        by_record = sum(verdict["basis"] == "records" for verdict in group)
        found[f"claims.{name}.by-record"] = entry(by_record, unit="claims")
    return found


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
        for end in ("shortest", "longest"):
            n = found[f"series.{end}"]["value"]
            pair = [one.row(v, n) if one else None for v in (published.DENSE, variant)]
            found |= _gain(f"series.vs_dense.{variant}.{end}", *pair)
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
    text = interval(cross.n.value, cross.n.low, cross.n.high, "{:,.0f}")
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


def save(numbers: dict[str, dict], path: Path) -> None:
    """Write `numbers` as sorted JSON."""
    write(path, json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Join; returns the exit status, 1 with one line on stderr for unusable input."""
    parser = argparse.ArgumentParser(description="Join numbers and verdicts into one file.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    try:
        save(join(options.files), options.out)
    except (NumbersError, OSError) as error:
        print(f"numbers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
