"""What the records of `ring` say as numbers by key: one device, ranks, traffic, orders, a model."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis.experiments.ring import cost_model
from analysis.experiments.ring import views as ring_views
from analysis.experiments.ring.cost_model import MODEL_TOKENS
from analysis.experiments.ring.views import (
    CURVES,
    EXPERIMENT,
    GRID_ORDERS,
    OURS,
    SIDE,
    SINGLE,
    counted,
)
from analysis.records import systems
from analysis.rendering.numbers import entry
from analysis.selection import published, views
from analysis.standard import number_entries, quantities
from analysis.standard.quantities import Quantity

DENSE_RINGS = SINGLE[1:4]
MEMORY_AT = 512  # the length of the published figures
_LINKS = {"nvlink": cost_model.NVLINK, "infiniband": cost_model.INFINIBAND}


def of_ranks(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """Key -> entry; the keys do not depend on what was measured."""
    return {
        **_single(frame, view),
        **_memory(view),
        **_scaling(view),
        **_traffic(view),
        **_peers(view),
        **_orders(view),
        **_model(view),
    }


def _single(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """Tokens per second on one device, published and measured, and who is fastest."""
    found: dict[str, dict] = {}
    batch = published.shapes(EXPERIMENT)[0][0]
    for _, n in published.shapes(EXPERIMENT):
        rows = {s: ring_views.single(frame, view.machine, s, n) for s in SINGLE}
        for system, row in rows.items():
            at = f"{system}.n{n}"
            shape = (EXPERIMENT, system, batch, n, "throughput")
            found[f"published.throughput.{at}"] = entry(
                published.value(*shape), unit="tokens/s", text=published.text(*shape)
            )
            found[f"single.throughput.{at}"] = number_entries.of(
                quantities.rate(row), [row], "{:,.0f}"
            )
            found |= number_entries.gain(f"single.vs_dense.{at}", rows[published.DENSE], row)
        rings = [rows[s] for s in DENSE_RINGS if quantities.is_timed(rows[s])]
        rings.sort(key=lambda row: row["median_ms"])
        best = published.name(rings[0]["system"]) if rings else None
        found[f"single.best.n{n}"] = entry(best, rows=rings[:1])
        ends = (rings[-1], rings[0]) if len(rings) > 1 else (None, None)
        found |= number_entries.gain(f"single.spread.n{n}", *ends)
    for system in SINGLE:
        row = ring_views.single(frame, view.machine, system, MEMORY_AT)
        each = ring_views.per_token(row)
        found[f"memory.per_token.{system}"] = number_entries.of(each, [row])
        shape = (EXPERIMENT, system, batch, MEMORY_AT, "memory_per_token")
        found[f"published.memory.per_token.{system}"] = entry(
            published.value(*shape), unit="KB", text=published.text(*shape)
        )
    return found


def _memory(view: views.View) -> dict[str, dict]:
    """Memory of a rank of a dense ring: its growth with the length, and what more ranks save.

    The growth is that at most ranks, of those whose exponent is known to within 1 if any is; the
    saving that from the fewest ranks to the most, at the longest length that has several.
    """
    rows = view.rows[(view.rows["variant"] == OURS) & (view.rows["pass"] == "forward")]
    families = [f for f in ring_views.families(rows) if len(f.world_sizes) > 1]
    over_n = [
        (fit.is_narrow, p, family, fit)
        for family in families
        for p in family.world_sizes
        if p > 1 and (fit := family.memory_over_lengths(p))
    ]
    _, at, family, fit = max(over_n, key=lambda one: one[:2], default=(None, None, None, None))
    found = {"memory.over_length": number_entries.exponent(fit, _rows(family) if fit else [])}
    found["memory.over_length.at"] = entry(at)
    found["memory.over_length.kind"] = entry(_kind(family))
    over_p = [
        (n, family, rows[0], rows[-1])
        for family in families
        for n in family.lengths
        if len(rows := _with_peak(family, n)) > 1
    ]
    at, family, few, many = max(over_p, key=lambda one: one[0], default=(None, None, None, None))
    key, both = "memory.over_ranks", [few, many]
    found[key] = number_entries.of(Quantity(views.ratio(few, many, "memory"), "x"), both)
    found[f"{key}.at"] = number_entries.tokens(at)
    found[f"{key}.kind"] = entry(_kind(family))
    sizes = [None if row is None else int(row["world_size"]) for row in both]
    found[f"{key}.few"], found[f"{key}.many"] = map(entry, sizes)
    ideal = None if family is None else sizes[1] / sizes[0]
    found[f"{key}.ideal"] = entry(ideal, text=None if ideal is None else f"{ideal:g}")
    return found


def _with_peak(family: ring_views.Family, n: int) -> list[pd.Series]:
    """The rows of a length over two ranks or more whose peak was seen, by their ranks."""
    rows = [family.row(n, p) for p in family.world_sizes if p > 1]
    return [row for row in rows if row is not None and row["peak_memory_bytes"] > 0]


def _kind(family: ring_views.Family | None) -> str | None:
    return None if family is None else ("simulated" if family.simulated else "real")


def _rows(family: ring_views.Family) -> list[pd.Series]:
    return [row for _, row in family.rows.iterrows()]


def _scaling(view: views.View) -> dict[str, dict]:
    """Forward passes over most real ranks at most tokens, strong and weak.

    Against one rank, and against dense attention on the device that the ranks share.
    """
    found: dict[str, dict] = {}
    pairs = ring_views.strong(view.rows[view.rows["pass"] == "forward"])
    grown = ring_views.weak(view.rows[view.rows["pass"] == "forward"])
    for system in _over_ranks():
        row, alone = _longest(pairs, system)
        key = f"strong.{system}"
        found |= number_entries.gain(f"{key}.speedup", alone, row)
        strong = quantities.strong_efficiency(alone, row)
        found[f"{key}.efficiency"] = number_entries.per_cent(strong.value, [alone, row])
        whole = None if row is None else ring_views.on_the_whole_device(view.rows, row)
        found |= number_entries.gain(f"{key}.over_dense", whole, row)
        found[f"{key}.ranks"] = _count(row)
        each = None if row is None else {"cpu": "core", "cuda": "card"}[row["device_kind"]]
        found[f"{key}.each"] = entry(each)
        found[f"{key}.tokens"] = number_entries.tokens(None if row is None else int(row["seq_len"]))
        waiting = None if row is None else row["wait_share"]
        found[f"{key}.waiting"] = number_entries.per_cent(waiting, [row])
        row, alone = _longest(grown, system)
        weak = quantities.weak_efficiency(alone, row)
        found[f"weak.{system}.efficiency"] = number_entries.per_cent(weak.value, [alone, row])
        found[f"weak.{system}.tokens"] = number_entries.tokens(
            None if alone is None else int(alone["seq_len"])
        )
    return found


def _traffic(view: views.View) -> dict[str, dict]:
    """What the busiest of most real ranks sent on the forward pass, of the dense formula."""
    found: dict[str, dict] = {}
    rows = view.rows[(view.rows["pass"] == "forward") & view.rows["simulated"].eq(False)]
    rows = rows[(rows["world_size"] > 1) & rows["bytes_sent"].notna()]
    for system in _over_ranks():
        row, _ = _longest([(row, None) for _, row in rows.iterrows()], system)
        key = f"traffic.{system}"
        share = None if row is None else ring_views.sent_share(row)
        found[f"{key}.share"] = number_entries.per_cent(share, [row])
        sent = quantities.size(quantities.bytes_of(row, "bytes_sent"))
        found[f"{key}.sent"] = number_entries.of(sent, [row])
        found[f"{key}.ranks"] = _count(row)
    return found


def _peers(view: views.View) -> dict[str, dict]:
    """Other people's rings, causal and forward, against ours: how many times as fast ours is."""
    found: dict[str, dict] = {}
    rows = view.rows[(view.rows["pass"] == "forward") & view.rows["is_causal"].astype(bool)]
    pairs = ring_views.peers(
        rows[(rows["world_size"] > 1) | ~rows["variant"].map(ring_views.is_peer).astype(bool)]
    )
    for variant in sorted({systems.parts(s)[0] for s in systems.of_experiment(EXPERIMENT)}):
        if ring_views.is_peer(variant):
            row, ours = _longest(pairs, variant)
            found |= number_entries.gain(f"peers.{variant}", row, ours)
            outcome = None if row is None else row["status"]
            found[f"peers.{variant}.outcome"] = entry(
                "timed" if outcome == "ok" else outcome, rows=[row]
            )
    return found


def _orders(view: views.View) -> dict[str, dict]:
    """Orders of a 2-D grid: simulated rings, not causal, against row-major; and their locality."""
    found: dict[str, dict] = {}
    rows = view.rows[(view.rows["pass"] == "forward") & view.rows["simulated"].eq(True)]
    rows = rows[~rows["is_causal"].astype(bool)]
    first = {}
    for variant in GRID_ORDERS:
        own = rows[rows["variant"] == variant].sort_values("seq_len", kind="stable")
        first[variant] = None if own.empty else own.iloc[-1]
        if variant != GRID_ORDERS[0]:
            found |= number_entries.gain(f"orders.{variant}", first[GRID_ORDERS[0]], first[variant])
    for curve in CURVES:
        for what, width in (("grid", SIDE), ("text", None)):
            local = counted(curve, width)
            key = f"locality.{what}.{curve}"
            found[f"{key}.blocks"] = entry(local.distinct_blocks)
            found[f"{key}.received"] = number_entries.per_cent(local.received, ())
            found[f"{key}.step"] = entry(local.mean_step)
    return found


def _model(view: views.View) -> dict[str, dict]:
    """Modelled: break-even shards, and how many ranks a million tokens gain from."""
    shape = cost_model.shape_on(view.rows)
    kind = "nominal" if shape.nominal else "measured"
    found = {
        "model.rate": entry(shape.rate / 1e12, unit="TFLOP/s"),
        "model.rate.kind": entry(kind),
        "model.tokens": number_entries.tokens(MODEL_TOKENS),
        "model.most": entry(cost_model.MAX_RANKS, text=f"{cost_model.MAX_RANKS:,}"),
    }
    ranks = [2**power for power in range(cost_model.MAX_RANKS.bit_length())]
    for name, link in _LINKS.items():
        for word, density in (("dense", 1.0), ("sparse", 0.02)):
            shard = cost_model.break_even(shape, link, density)
            found[f"model.break_even.{word}.{name}"] = entry(
                shard, unit="tokens", text=f"{shard:,.0f}"
            )
        for system in cost_model.SYSTEMS:
            costs = [cost_model.cost(system.hops(MODEL_TOKENS, p), shape, link) for p in ranks]
            best = min(range(len(ranks)), key=lambda i: costs[i].total)
            key = system.name.replace(" %", "").replace(",", "").replace(" ", "-")
            found[f"model.{key}.{name}.best"] = entry(ranks[best], text=f"{ranks[best]:,}")
            found[f"model.{key}.{name}.gain"] = entry(costs[0].total / costs[best].total)
            found[f"model.{key}.{name}.waiting"] = number_entries.per_cent(costs[-1].waiting, ())
    return found


def _over_ranks() -> list[str]:
    """Our own systems that the grid spreads over real ranks, by their key on one rank."""
    found = [
        systems.on_one_rank(system)
        for system in systems.of_experiment(EXPERIMENT)
        if systems.ranks(system)[0] > 1 and not systems.ranks(system)[1]
    ]
    return [s for s in dict.fromkeys(found) if not ring_views.is_peer(systems.parts(s)[0])]


def _longest(pairs: Iterable[tuple], system: str) -> tuple:
    """The pair of a system at its most tokens, causal before not, then its most ranks."""
    own = [pair for pair in pairs if systems.on_one_rank(pair[0]["system"]) == system]
    key = ("seq_len", "is_causal", "world_size")
    return max(own, key=lambda pair: [pair[0][k] for k in key], default=(None, None))


def _count(row: pd.Series | None) -> dict:
    return entry(None if row is None else int(row["world_size"]), rows=[row])
