"""Tables of `ring` over ranks: strong and weak scaling, traffic, and other people's rings."""

from __future__ import annotations

import math

import pandas as pd

from analysis.experiments.ring import views as ring_views
from analysis.records import systems
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import tokens
from analysis.selection import views
from analysis.standard import in_words, quantities
from analysis.standard.beside import named
from analysis.standard.cells import cell, memory_cell, ratio_cell, time_cell

CASE = ("type", "causal", "heads", "batch", "training")
ALONE = {"cpu": "a rank is one core, and one rank too", "cuda": "a rank is one device"}


def strong(frame: pd.DataFrame, machine: str) -> Table:
    """Time over ranks at one length, the speed-up over one rank of one core, and over no ring."""
    view = ring_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = []
    for row, alone in ring_views.strong(view.rows):
        body.append(
            (
                _in_order(row),
                in_words.case(row, *CASE),
                tokens(row["seq_len"]),
                ring_views.ranks_in_words(row),
                time_cell(alone),
                time_cell(row),
                ratio_cell(alone, row),
                cell(quantities.strong_efficiency(alone, row), "{:.2f}"),
                ratio_cell(ring_views.on_the_whole_device(view.rows, row), row),
                in_words.per_cent(row["wait_share"]),
                memory_cell(row),
            )
        )
    columns = (
        "System, order",
        "Case",
        "Length",
        "Ranks",
        "Time, 1 rank (ms)",
        "Time (ms)",
        "Speed-up",
        "Efficiency",
        "Over dense",
        "Waiting",
        "Memory (MiB)",
    )
    note = (
        f"Measured: {view.device}, real ranks; {_alone(view)}. Efficiency: speed-up over ranks. "
        "Over dense: times as fast as dense attention without a ring on the same cores. "
        "Waiting: share of the slowest rank's time in which it waited for keys. Memory: the peak "
        "of a rank beyond its inputs."
    )
    return Table("Ring, strong scaling", columns, body, note)


def weak(frame: pd.DataFrame, machine: str) -> Table:
    """Time over ranks at one number of tokens per rank, whose work grows with the ranks."""
    view = ring_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = []
    for row, alone in ring_views.weak(view.rows):
        work = quantities.work_per_rank(alone, row)
        body.append(
            (
                _in_order(row),
                in_words.case(row, *CASE),
                tokens(alone["seq_len"]),
                ring_views.ranks_in_words(row),
                time_cell(row),
                ratio_cell(row, alone),
                None if math.isnan(work) else float(work),
                cell(quantities.weak_efficiency(alone, row), "{:.2f}"),
            )
        )
    columns = (
        "System, order",
        "Case",
        "Tokens per rank",
        "Ranks",
        "Time (ms)",
        "Times as long",
        "Work per rank",
        "Efficiency",
    )
    note = (
        f"Measured: {view.device}, real ranks; {_alone(view)}. Both against one rank with as many "
        "tokens: a rank of p meets the keys of all, so its work grows with p. Efficiency: work "
        "over time."
    )
    return Table("Ring, weak scaling", columns, body, note)


def traffic(frame: pd.DataFrame, machine: str) -> Table:
    """Bytes and messages that the busiest rank sent, counted, against a dense ring's formula."""
    view = ring_views.view(frame, machine)
    rows = view.rows[(view.rows["world_size"] > 1) & view.rows["bytes_sent"].notna()]
    body: list[tuple[Cell, ...]] = []
    for family in ring_views.families(rows):
        rows = family.rows.sort_values(["seq_len", "world_size"], kind="stable")
        if family.simulated:  # the share does not change with the length
            rows = rows.drop_duplicates("world_size", keep="last")
        for _, row in rows.iterrows():
            body.append(
                (
                    named(systems.on_one_rank(row["system"])),
                    in_words.case(row, *CASE),
                    tokens(row["seq_len"]),
                    ring_views.ranks_in_words(row),
                    cell(quantities.size(row["bytes_sent"], "KiB")),
                    cell(quantities.size(ring_views.dense_bytes(row), "KiB")),
                    in_words.per_cent(ring_views.sent_share(row)),
                    f"{row['messages_sent']:.0f}",
                )
            )
    columns = (
        "System",
        "Case",
        "Length",
        "Ranks",
        "Sent (KiB)",
        "Dense formula (KiB)",
        "Share",
        "Messages",
    )
    note = (
        "Counted where messages are posted, of the rank that sent most; of a simulated ring at its "
        "longest length. Formula: (p - 1) n/p B Hkv D 2 itemsize on "
        "the forward pass, not causal; backward adds that again and the gradients of both, in "
        "float32 at least."
    )
    return Table("Ring, bytes sent by a rank", columns, body, note)


def peers(frame: pd.DataFrame, machine: str) -> Table:
    """Other people's ring attention beside ours, same case: time, error, or why there is none."""
    view = ring_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = []
    for row, ours in ring_views.peers(view.rows):
        body.append(
            (
                named(systems.on_one_rank(row["system"])),
                in_words.case(row, *CASE),
                tokens(row["seq_len"]),
                ring_views.ranks_in_words(row),
                time_cell(row),
                time_cell(ours),
                ratio_cell(row, ours),
                _error_ratio(row, ours),
                "timed" if row["status"] == "ok" else row["reason"],
            )
        )
    columns = (
        "System",
        "Case",
        "Length",
        "Ranks",
        "Time (ms)",
        "Ours (ms)",
        "Ours faster by",
        "Error over ours",
        "Outcome",
    )
    note = (
        f"Measured: {view.device}, real ranks, in the same run. Ours: "
        f"{named(ring_views.OURS)} of the same case. Error: relative rms distance from the float64 "
        "oracle. A system whose output or gradients fail the check is not timed."
    )
    return Table("Ring, other people's", columns, body, note)


def _in_order(row: pd.Series) -> str:
    """A system and its token order: in one column, as names are long."""
    return f"{named(systems.on_one_rank(row['system']))}, {ring_views.order(row['variant'])}"


def _error_ratio(row: pd.Series, ours: pd.Series | None) -> Cell:
    if ours is None or math.isnan(row["relative_rms"]) or math.isnan(ours["relative_rms"]):
        return None
    return float(row["relative_rms"] / ours["relative_rms"])


def _alone(view: views.View) -> str:
    return ALONE[view.rows.iloc[0]["device_kind"]]
