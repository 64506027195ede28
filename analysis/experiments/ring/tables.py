"""Tables of the write-up `ring`: one device, and memory by length and ranks."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.ring import views as ring_views
from analysis.experiments.ring.views import EXPERIMENT, SINGLE, Family
from analysis.records import systems
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import DASH, span, tokens
from analysis.selection import published, views
from analysis.selection.shortlist import shortlist
from analysis.standard import in_words
from analysis.standard.beside import measured_on, named, printed
from analysis.standard.cells import (
    cell,
    exponent_cell,
    memory_cell,
    rate_cell,
    ratio_cell,
    time_cell,
)

CASE = ("type", "causal", "heads", "batch")
_MOST_FAMILIES = 24


def single(frame: pd.DataFrame, machine: str) -> Table:
    """Tokens per second on one device at the published lengths, published beside measured."""
    view = ring_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = []
    for batch, n in published.shapes(EXPERIMENT):
        dense = ring_views.single(frame, machine, published.DENSE, n)
        for system in SINGLE:
            row = ring_views.single(frame, machine, system, n)
            body.append(
                (
                    str(n),
                    str(batch),
                    named(system),
                    printed(EXPERIMENT, batch, n)(system, "throughput"),
                    rate_cell(row),
                    time_cell(row),
                    memory_cell(row),
                    None if system == published.DENSE else ratio_cell(dense, row),
                )
            )
    columns = (
        "Length",
        "Batch",
        "Implementation",
        "Tokens/s published",
        "Tokens/s measured",
        "Time (ms)",
        "Memory (MiB)",
        "Over dense",
    )
    note = (
        f"Published: {published.CARD}, the fastest of its four at each length, one run. "
        f"{measured_on(view)} Over a single rank the first three rings are dense attention."
    )
    if view.is_cpu:
        note += " On a CPU a rank is one core, and the baseline has all cores."
    return Table("Ring, one device, published beside measured", columns, body, note)


def memory(frame: pd.DataFrame, machine: str) -> Table:
    """Kibibytes per token of the whole batch that a rank holds beyond its inputs."""
    view = ring_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = []
    found, left_out = _with_memory(view)
    lengths = sorted({n for family in found for n in family.lengths})
    batch = published.shapes(EXPERIMENT)[0][0]
    for family in found:
        for world_size in family.world_sizes:
            rows = [family.row(n, world_size) for n in lengths]
            fit = family.memory_over_lengths(world_size)
            system = systems.on_one_rank(family.first["system"])
            old = DASH
            if world_size == 1:
                old = printed(EXPERIMENT, batch, 512)(system, "memory_per_token")
            body.append(
                (
                    named(system),
                    in_words.case(family.first, *CASE),
                    old,
                    _ranks(family, world_size),
                    *(cell(ring_views.per_token(row)) for row in rows),
                    exponent_cell(fit),
                )
            )
    columns = (
        "System",
        "Case",
        "Published (KB/token)",
        "Ranks",
        *(f"{tokens(n)} (KiB/token)" for n in lengths),
        "n: k",
    )
    note = (
        f"Measured: {view.device}; the peak of a rank beyond its inputs over the tokens of the "
        "whole batch. Published: at 512 tokens, one device. k: growth of the peak with the length, "
        "95 % interval. Of simulated ranks one is run alone, with no network. A real ring of few "
        f"lengths is in the table of strong scaling.{left_out}"
    )
    return Table("Ring, memory per token", columns, body, note)


def growth(frame: pd.DataFrame, machine: str) -> Table:
    """Growth of a rank's memory with 1 / ranks at a length: O(n / p) is k = 1."""
    body: list[tuple[Cell, ...]] = []
    left_out = ""
    for view in views.all_views(frame, EXPERIMENT, machine):
        found, said = _with_memory(view)
        left_out = left_out or said
        for family in found:
            for n in family.lengths:
                fit = family.memory_over_ranks(n)
                if fit is None:
                    continue
                timed = family.rows[family.rows["seq_len"] == n]
                body.append(
                    (
                        view.device,
                        named(systems.on_one_rank(family.first["system"])),
                        in_words.case(family.first, *CASE),
                        tokens(n),
                        ("simulated, " if family.simulated else "") + span(timed["world_size"]),
                        exponent_cell(fit),
                    )
                )
    columns = ("Machine", "System", "Case", "Length", "Ranks", "1/p: k")
    note = (
        "k of a power of 1 over the number of ranks at one length, with a constant beside it from "
        f"four numbers of ranks on; 95 % interval. 1 is O(n / p), 0 is no saving.{left_out}"
    )
    return Table("Ring, memory of a rank against ranks", columns, body, note)


def _with_memory(view: views.View) -> tuple[list[Family], str]:
    """Our forward families of three lengths or three numbers of ranks, whose memory was seen.

    Of those the shortlist, and what is said of it.
    """
    rows = view.rows[view.rows["pass"] == "forward"]
    found = [
        family
        for family in ring_views.families(rows)
        if max(len(family.lengths), len(family.world_sizes)) > 2
        and not ring_views.is_peer(family.variant)
        and (family.rows["peak_memory_bytes"] > 0).any()
    ]
    return shortlist(found, lambda family: family.first, _MOST_FAMILIES, "series")


def _ranks(family: Family, world_size: int) -> str:
    return f"{world_size}{', simulated' if family.simulated else ''}"
