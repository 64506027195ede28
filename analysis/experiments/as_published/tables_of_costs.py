"""Tables of `as_published` on memory and on times that were multiplied, not taken."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.as_published import views as replica_views
from analysis.experiments.as_published.views import BILLION, FIRST_AT, LOOP, RING
from analysis.records.units import ITEM_BYTES
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import DASH, tokens
from analysis.selection import published
from analysis.standard import quantities
from analysis.standard.cells import cell, memory_cell, rate_cell, time_cell

RINGS = ("ring-standard", "ring-distributed", "ring-hilbert")


def billion(frame: pd.DataFrame, machine: str) -> Table:
    """One chunk's time times the ranks that a length would need; beside real sequences."""
    view = replica_views.view(frame, machine)
    chunk, known = replica_views.chunk(view), replica_views.readings()["billion"]
    size, _ = replica_views.CHUNK
    body: list[tuple[Cell, ...]] = []
    for n in BILLION:
        ranks = n // size
        own = replica_views.streamed(frame, view.machine, n)
        body.append(
            (
                f"{n:,}",
                f"{ranks:,}",
                f"{known['seconds']:,g}" if n == known["tokens"] else DASH,
                cell(replica_views.first_call(chunk, "s", ranks)),
                cell(quantities.time(chunk, "s", multiplier=ranks)),
                time_cell(own, "s"),
            )
        )
    columns = (
        "Tokens",
        "Multiplier",
        "Time published (s)",
        "First call × multiplier (s)",
        "Warm call × multiplier (s)",
        "Exact, one sequence (s)",
    )
    least, most = known["chunk_ms"]
    note = (
        f"Measured: {view.device}. Columns 4 and 5 are no measurements of that length: they are "
        f"the time of one chunk of {size} tokens attended to across heads, times the number of "
        f"chunks, as in the published table, whose chunks took {least:g} to {most:g} ms. Exact: "
        "dilated attention over one real sequence, by the experiment extreme; its heads, segments "
        "and causality are that experiment's."
    )
    return Table("As-published, one chunk times the ranks", columns, body, note)


def memory(frame: pd.DataFrame, machine: str) -> Table:
    """What is alive after a call against the peak during it, at the shapes of `dilated`."""
    view = replica_views.view(frame, machine)
    fixed = published.setting("dilated")
    body: list[tuple[Cell, ...]] = []
    for batch, n in published.shapes("dilated"):
        lengths, _ = fixed.patterns[n]
        options = {"heads": (fixed.heads, fixed.head_dim), "is_causal": True, "segments": lengths}
        loop, plain, strided = (
            replica_views.find(view, variant, batch, n, **options)
            for variant in (LOOP, "dilated-gather", "dilated-sdpa")
        )
        tensor = batch * n * fixed.heads * fixed.head_dim
        held = (
            tensor * ITEM_BYTES[fixed.dtype],
            None if loop is None else tensor * ITEM_BYTES[loop["dtype"]],
            *(quantities.bytes_of(loop, f"calls_{which}_bytes") for which in ("kept", "dropped")),
        )
        body.append(
            (
                tokens(n),
                str(batch),
                published.text("dilated", "dilated-gather", batch, n, "memory") or DASH,
                *(cell(quantities.size(amount)) for amount in held),
                memory_cell(loop),
                memory_cell(plain),
                memory_cell(strided),
            )
        )
    columns = (
        "Length",
        "Batch",
        "Published (MiB)",
        "Output, published type",
        "Output here",
        "Alive after",
        "Output let go",
        "Peak, replica",
        "Peak, exact plain",
        "Peak, exact fused",
    )
    types = {row["dtype"] for _, row in view.rows[view.rows["variant"] == LOOP].iterrows()}
    note = (
        f"Measured: {view.device}, {', '.join(sorted(types)) or DASH}; published: {fixed.dtype}. "
        "MiB. Output: batch × length × heads × head size × bytes of the type, reckoned. Alive: "
        "tensors that a call made and that are still held after it, with its output and without; "
        "the write-up comprehensive let the output go, and all its memory figures are 0."
    )
    return Table("As-published, memory alive and peak memory", columns, body, note)


def first_call(frame: pd.DataFrame, machine: str) -> Table:
    """What is charged to whoever runs first in a process, in memory and in time."""
    view = replica_views.view(frame, machine)
    batch, _ = published.shapes("ring")[0]
    body: list[tuple[Cell, ...]] = []
    for n in (FIRST_AT, *(n for _, n in published.shapes("ring"))):
        row = replica_views.find(view, RING, batch, n)
        calls = [quantities.bytes_of(row, f"calls_{c}_peak_bytes") for c in ("first", "second")]
        body.append(
            (
                tokens(n),
                *(replica_views.published_first() if n == FIRST_AT else [None] * 3),
                *(cell(quantities.per_token(row, peak)) for peak in calls),
                cell(quantities.size(replica_views.first_more(row))),
                cell(replica_views.first_call(row)),
                time_cell(row),
            )
        )
    columns = (
        "Length",
        "Standard published (KB per token)",
        "Hilbert published (KB per token)",
        "Difference published (MiB)",
        "First call (KiB per token)",
        "Second call (KiB per token)",
        "Difference (MiB)",
        "First call (ms)",
        "Warm (ms)",
    )
    where = "allocated" if view.rows.iloc[0]["device_kind"] == "cuda" else "resident"
    note = (
        f"Measured: {view.device}; peak {where} memory beyond the inputs, of two identical calls "
        "in a fresh process with nothing touched before; medians over processes. Published: two "
        "of three names for one computation; their difference is cuBLAS's workspace, which the "
        "first to run was charged."
    )
    return Table("As-published, what the first call is charged", columns, body, note)


def one_ring(frame: pd.DataFrame, machine: str) -> Table:
    """Three published names and rates, one computation, and dense attention."""
    view = replica_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = []
    for batch, n in published.shapes("ring"):
        row, dense = (replica_views.find(view, v, batch, n) for v in (RING, published.DENSE))
        old = (published.text("ring", s, batch, n, "throughput") or DASH for s in RINGS)
        body.append((tokens(n), *old, rate_cell(row), rate_cell(dense)))
    columns = (
        "Length",
        *(f"{published.name(system)} published" for system in RINGS),
        "Replica of all three",
        "Dense",
    )
    note = (
        f"Measured: {view.device}. Tokens per second. Published is the best of each length. On one "
        "device the three names stood for the same computation, bit by bit: dense attention with "
        "all scores written down, whatever segments and rates were given."
    )
    return Table("As-published, three names of one ring", columns, body, note)
