"""What the records of `as_published` say as numbers by key: published, replica, exact."""

from __future__ import annotations

import math

import pandas as pd

from analysis.experiments.as_published import views as replica_views
from analysis.experiments.as_published.views import FIRST_AT, HEADS, LOOP, REPLICAS, RING, SHARES
from analysis.records.replica_columns import DEVIATIONS
from analysis.rendering.numbers import entry
from analysis.selection import published, views
from analysis.standard import number_entries, quantities
from analysis.standard.quantities import Quantity


def of_replicas(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """Key -> entry; the keys do not depend on what was measured."""
    return {
        **_speedups(view),
        **_deviations(view),
        **_plots(view),
        **_billion(frame, view),
        **_memory(view),
        **_first_call(view),
    }


def _speedups(view: views.View) -> dict[str, dict]:
    """`three.<system>.n<length>.<column>`."""
    found: dict[str, dict] = {}
    for three in replica_views.speedups(view):
        if three.published is None:
            continue
        at = f"three.{three.system}.n{three.seq_len}"
        found[f"{at}.published"] = entry(three.published, text=f"{three.published:.2f}")
        for column in ("replica", "exact", "over_dense"):
            pair = getattr(three, column)
            gain = quantities.speed_up(*pair)
            found[f"{at}.{column}"] = number_entries.of(gain, pair if gain.amount else ())
    return found


def _deviations(view: views.View) -> dict[str, dict]:
    """`deviation.<replica>.<field>` of its longest case, and the exact system's name."""
    found: dict[str, dict] = {}
    for replica in REPLICAS:
        row = replica_views.largest(view, replica)
        key = f"deviation.{replica.removeprefix('published-')}"
        name = None if row is None else published.name(row["deviation_variant"])
        found[f"{key}.exact"] = entry(name, rows=[row])
        for field in DEVIATIONS:
            value = math.nan if row is None else float(row[f"deviation_{field}"])
            known = value if math.isfinite(value) else None
            show = number_entries.per_cent if field == "zero_rows" else entry
            found[f"{key}.{field}"] = show(known, rows=[row])
    return found


def _plots(view: views.View) -> dict[str, dict]:
    """Time at the longest length over the shortest, measured and counted, by rates and system."""
    curves = {(c.rates, c.variant): c for c in replica_views.curves(view)}
    found: dict[str, dict] = {}
    for key, of in (
        ("made", ("as made", replica_views.SUMS)),
        ("meant", ("as meant", replica_views.SUMS)),
        ("exact", ("as meant", "dilated-sdpa")),
    ):
        curve = curves.get(of)
        row = curve.rows[-1] if curve and len(curve.rows) > 1 else None
        share = Quantity(None) if row is None else curve.share(row)
        counted = Quantity(None if row is None else float(curve.model(row)))
        pair = () if row is None else (curve.rows[0], row)
        found[f"plots.{key}.share"] = number_entries.of(share, pair)
        found[f"plots.{key}.counted"] = number_entries.of(counted, pair, "{:.3f}")
    for plot in SHARES:
        found[f"plots.published.{plot}"] = entry(replica_views.plot_share(plot))
    return found


def _billion(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """The published total, the chunk here, what it comes to, and the longest real sequence."""
    known, row = replica_views.readings()["billion"], replica_views.chunk(view)
    longest = [
        one
        for n in replica_views.BILLION
        if (one := replica_views.streamed(frame, view.machine, n)) is not None
    ]
    last = longest[-1] if longest else None
    return {
        "billion.published": entry(known["seconds"], unit="s", text=f"{known['seconds']:,g}"),
        "billion.ranks": entry(known["ranks"], text=f"{known['ranks']:,}"),
        "billion.published.chunk": entry(1e3 * known["seconds"] / known["ranks"], unit="ms"),
        "billion.chunk.first": number_entries.of(replica_views.first_call(row), [row]),
        "billion.chunk": number_entries.time(row),
        "billion.replica": number_entries.of(
            replica_views.first_call(row, "s", known["ranks"]), [row]
        ),
        "billion.exact.tokens": number_entries.tokens(
            None if last is None else int(last["seq_len"])
        ),
        "billion.exact": entry(quantities.time(last, "s").value, unit="s", rows=[last]),
    }


def _memory(view: views.View) -> dict[str, dict]:
    """At each shape of `dilated`: published, the output, what is alive, and two peaks."""
    fixed, found = published.setting("dilated"), {}
    for batch, n in published.shapes("dilated"):
        options = {"heads": (fixed.heads, fixed.head_dim), "is_causal": True}
        loop, exact = (
            replica_views.find(view, v, batch, n, segments=fixed.patterns[n][0], **options)
            for v in (LOOP, "dilated-sdpa")
        )
        at = f"memory.b{batch}.n{n}"
        shape = ("dilated", "dilated-gather", batch, n, "memory")
        found[f"{at}.published"] = entry(
            published.value(*shape), unit="MiB", text=published.text(*shape)
        )
        kind = None if loop is None else loop["dtype"]
        found[f"{at}.type"] = entry(kind, rows=[loop])
        found[f"{at}.alive"] = _held(loop, "kept")
        found[f"{at}.dropped"] = _held(loop, "dropped")
        found[f"{at}.peak"] = number_entries.memory(loop)
        found[f"{at}.exact"] = number_entries.memory(exact)
    return found


def _first_call(view: views.View) -> dict[str, dict]:
    """What the first call of a process takes more than the second, and the published difference."""
    batch, _ = published.shapes("ring")[0]
    row = replica_views.find(view, RING, batch, FIRST_AT)
    chunk = replica_views.chunk(view, HEADS)
    cold = quantities.is_timed(chunk)
    return {
        "first.published": entry(replica_views.published_first()[-1], unit="MiB"),
        "first.more": number_entries.of(quantities.size(replica_views.first_more(row)), [row]),
        "first.slower": entry(
            float(chunk["calls_first_ms"] / chunk["median_ms"]) if cold else None, rows=[chunk]
        ),
    }


def _held(row: pd.Series | None, which: str) -> dict:
    """Memory that is alive after a call whose output is "kept" or "dropped"."""
    held = quantities.bytes_of(row, f"calls_{which}_bytes")
    return number_entries.of(quantities.size(held), [row])
