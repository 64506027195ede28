"""What the records of one experiment show, as numbers by key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from analysis.records import frame as records
from analysis.records import systems
from analysis.rendering.numbers import entry
from analysis.rendering.text import interval
from analysis.selection import published, rates, reporting_machine, views
from analysis.standard import number_entries
from analysis.statistics import crossovers

Own = Callable[[pd.DataFrame, views.View], dict[str, dict]]
_NO_ENDS = (("shortest", None), ("longest", None))
_PASSES = {"series": "forward", "training": "forward_backward"}


def of_experiment(
    frame: pd.DataFrame, experiment: str, machine: str, own: Sequence[Own]
) -> dict[str, dict]:
    """Key -> entry for `experiment`, of `machine`; "auto": see `selection.reporting_machine`.

    own: functions of the frame and a view that give the entries that no other experiment has.

    The keys do not depend on what was measured: a key that is not here is a misspelling, a
    number that was not measured is an entry with the value null. `.word` keys hold "faster than",
    "slower than" or "as fast as, within the interval," for sentences that hold either way.
    """
    # What nobody vouches for gives no number to the prose.
    frame = records.vouched(frame)
    ids = reporting_machine.order(frame, experiment, machine)
    found = {one: _on_machine(frame, experiment, one, own) for one in ids}
    reported = reporting_machine.chosen(found, records.of_experiment(frame, experiment), ids)
    return {f"{experiment}.{key}": value for key, value in reported.items()}


def _on_machine(
    frame: pd.DataFrame, experiment: str, machine: str, own: Sequence[Own]
) -> dict[str, dict]:
    """Key, without the experiment's name -> entry of one machine."""
    view = views.view(frame, experiment, machine)
    found = {
        **_machine(frame, view),
        **_cells(view),
        **_series(view, "series"),
        **_series(view, "training"),
        **_errors(records.of_experiment(frame, experiment)),
        **_rates(view),
    }
    for of_view in own:
        found |= of_view(frame, view)
    return found


def _machine(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    rows = records.of_experiment(frame, view.experiment)
    row = view.rows.iloc[0]
    near = view.nearest
    words = {
        "id": view.machine,
        "device": view.device,
        "kind": row["device_kind"],
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
        "records.rounds": max(view.rows["rounds"]),
        "records.occasions": max(view.rows["occasions"]),
        "records.hosts": max(view.rows["hosts"]),
        "records.samples": sum(len(one.all) for samples in timed["samples"] for one in samples),
    }
    return found | {key: entry(int(count)) for key, count in counts.items()}


def _cells(view: views.View) -> dict[str, dict]:
    """Times, memory and speed-ups at the published shapes, and the published figures."""
    found: dict[str, dict] = {}
    own = _own(view.experiment)
    below = published.speedup_base(view.experiment)
    for wanted, n in published.shapes(view.experiment):
        # The write-up with one batch a length is measured at the nearest batch there is.
        batch = view.batch_for(wanted, n)
        at = f"b{wanted}.n{n}"
        found[f"batch.{at}"] = entry(batch, unit="sequences")
        base, dense = (view.cell(s, batch, n) for s in (below, published.DENSE))
        for system in own:
            for quantity, unit in (("time", "ms"), ("memory", "MiB"), ("speedup", "")):
                shape = (view.experiment, system, wanted, n, quantity)
                old = entry(published.value(*shape), unit=unit, text=published.text(*shape))
                found[f"published.{quantity}.{system}.{at}"] = old
        for system in own:
            row = view.cell(system, batch, n)
            found[f"time.{system}.{at}"] = number_entries.time(row)
            found[f"memory.{system}.{at}"] = number_entries.memory(row)
            found |= number_entries.gain(f"speedup.{system}.{at}", base, row)
            if below != published.DENSE:
                found |= number_entries.gain(f"vs_dense.{system}.{at}", dense, row)
    return found


def _series(view: views.View, name: str) -> dict[str, dict]:
    """Growth with length, and what that means against dense attention.

    Where "dense" is no system of the experiment, against the base of its speed-ups.
    """
    one = next(iter(view.series(_PASSES[name])), None)
    lengths = one.lengths if one else []
    found = {
        f"{name}.shortest": number_entries.tokens(lengths[0] if one else None),
        f"{name}.longest": number_entries.tokens(lengths[-1] if one else None),
        f"{name}.points": entry(len(lengths)),
        f"{name}.batch": entry(one.batch if one else None),
        f"{name}.heads": entry(one.heads if one else None),
        f"{name}.head_dim": entry(one.head_dim if one else None),
        f"{name}.dtype": entry(one.dtype if one else None),
        f"{name}.pattern": entry(one.pattern if one else None),
    }
    own = _own(view.experiment)
    against, word = _against(view.experiment)
    prefix = "" if name == "series" else f"{name}."
    fits = {}
    for system in systems.ordered({*own, against}):
        for quantity in ("time", "memory"):
            fit = one.growth(system, quantity) if one else None
            fits[system, quantity] = fit
            k = fit.exponent if fit else None
            text = interval(k.value, k.low, k.high, "{:.2f}") if k else None
            rows = [] if one is None else [one.row(system, n) for n in lengths]
            found[f"{prefix}growth.{quantity}.{system}"] = (
                entry(k.value, k.low, k.high, text=text, rows=rows) if k else entry(None)
            )
    for system in own:
        both = [n for n in lengths if views.ratio(one.row(against, n), one.row(system, n))]
        for end, n in (("shortest", both[0]), ("longest", both[-1])) if both else _NO_ENDS:
            pair = [one.row(s, n) if both else None for s in (against, system)]
            found |= number_entries.gain(f"{name}.{word}.{system}.{end}", *pair)
            found[f"{name}.{word}.{system}.{end}.tokens"] = number_entries.tokens(n)
            density = None if pair[1] is None else float(pair[1]["realised_density"])
            found[f"{name}.density.{system}.{end}"] = entry(density, rows=pair[1:])
        pair = [] if one is None else [one.row(s, n) for s in (against, system) for n in lengths]
        found[f"{prefix}crossover.{system}"] = _crossover(
            fits[against, "time"], fits[system, "time"], pair
        )
    return found


def _own(experiment: str) -> list[str]:
    """The systems on one device: those over ranks are in `analysis.experiments.ring.numbers`."""
    found = systems.of_experiment(experiment)
    return [system for system in found if systems.ranks(system) == (1, False)]


def _against(experiment: str) -> tuple[str, str]:
    """What a system of the experiment is set against, and the word for it in keys."""
    if published.DENSE in systems.of_experiment(experiment):
        return published.DENSE, "vs_dense"
    return published.speedup_base(experiment), "vs_base"


def _crossover(dense, own, rows: list) -> dict:
    """Length from which the system stays on its side of dense attention; fitted to `rows`."""
    if dense is None or own is None or dense is own:
        return entry(None)
    if max(dense.n_range[0], own.n_range[0]) >= min(dense.n_range[1], own.n_range[1]):
        return entry(None, unit="tokens", text="no length in common", rows=rows)
    cross = crossovers.crossover(dense, own)
    if cross.n is None:
        return entry(None, unit="tokens", text="not in the measured range", rows=rows)
    text = interval(cross.n.value, cross.n.low, cross.n.high, "{:,.0f}") + " tokens"
    return entry(cross.n.value, cross.n.low, cross.n.high, "tokens", text, rows)


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
            found[f"error.{name}.worst.system"] = entry(published.name(row["system"]))
        else:
            found[f"error.{name}.worst"] = found[f"error.{name}.worst.system"] = entry(None)
    return found


def _rates(view: views.View) -> dict[str, dict]:
    """Useful FLOP/s of each system and of dense attention, at the longest case of both.

    Where causality differs the non-causal case is used: there both do full tiles of work.
    `share`: of the lower of the two measured ceilings.
    """
    against, _ = _against(view.experiment)
    rows = view.rows[(view.rows["pass"] == "forward") & (view.rows["status"] == "ok")]
    rows = rows[~view.off_pattern_blocks(rows)]
    rows = rows.sort_values(["is_causal", "seq_len", "path"], ascending=[True, False, True])
    found = {}
    for system in _own(view.experiment):
        pairs = (
            (row, views.dense_counterpart(rows, row, against))
            for _, row in _of(rows, system).iterrows()
        )
        row, dense = next(((r, d) for r, d in pairs if d is not None), (None, None))
        found[f"rate.{system}"], found[f"rate.{system}.against"] = _rate(row), _rate(dense)
        if row is None:
            found |= {f"rate.{system}.{word}": entry(None) for word in ("ratio", "tokens", "share")}
            continue
        ratio = rates.useful(row).value / rates.useful(dense).value
        found[f"rate.{system}.ratio"] = entry(ratio, text=f"{ratio:.2f}", rows=[dense, row])
        found[f"rate.{system}.tokens"] = number_entries.tokens(int(row["seq_len"]), rows=[row])
        share = rates.useful(row).value / rates.bound(row)
        known = math.isfinite(share)
        text = f"{100 * share:.0f} %" if known else None
        found[f"rate.{system}.share"] = entry(share if known else None, text=text, rows=[row])
    return found


def _of(rows: pd.DataFrame, system: str) -> pd.DataFrame:
    return rows[rows["system"] == system]


def _rate(row: pd.Series | None) -> dict:
    rate = rates.useful(row)
    if rate is None:
        return entry(None)
    size, unit = rates.unit(rate.value)
    bounds = [bound / size for bound in (rate.value, rate.low, rate.high)]
    text = f"{interval(*bounds)} {unit}"
    return entry(*bounds, unit=unit, text=text, rows=[row])
