"""Tables of `as_published`: published, replica and exact side by side; what a replica computes."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.as_published import views as replica_views
from analysis.experiments.as_published.views import REPLICAS, SHARES
from analysis.records import frame as records
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import DASH, number, title, tokens
from analysis.selection import published
from analysis.standard import in_words
from analysis.standard.beside import named
from analysis.standard.cells import cell, ratio_cell, time_cell
from models.registry import VARIANTS


def speedups(frame: pd.DataFrame, machine: str) -> Table:
    """Every published speed-up that a replica was made for, in three columns."""
    view = replica_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = [
        (
            title(three.writeup),
            published.name(three.system),
            tokens(three.seq_len),
            DASH if three.published is None else f"{three.published:.2f}",
            ratio_cell(*three.replica),
            ratio_cell(*three.exact),
            ratio_cell(*three.over_dense),
        )
        for three in replica_views.speedups(view)
    ]
    columns = (
        "Write-up",
        "System",
        "Length",
        "Speed-up published",
        "Replica here",
        "Exact here",
        "Exact over dense",
    )
    note = (
        f"Measured: {view.device}, all in one run, at the batch nearest to the published one. "
        "Comprehensive: over DilatedAttention, as a loop over heads with its scores written down "
        "(replica) and as plain LongNet attention (exact). Block-sparse: over a softmax between "
        "two matrix products. The last column: over PyTorch's own attention."
    )
    return Table("As-published, speed-ups", columns, body, note)


def replicas(frame: pd.DataFrame, machine: str) -> Table:
    """What each replica computes, and the exact system that it stands beside."""
    rows = records.of_experiment(frame, replica_views.EXPERIMENT)
    body: list[tuple[Cell, ...]] = []
    for replica in REPLICAS:
        entry = VARIANTS[replica]
        checked = [str(text) for text in rows[rows["variant"] == replica]["reference"].dropna()]
        body.append(
            (
                entry.published_name,
                replica,
                entry.summary,
                published.name(entry.replica_of),
                checked[0].rpartition(": ")[2] if checked else None,
            )
        )
    columns = ("System", "Replica", "What it computes", "Beside", "Checked against, in float64")
    note = "Source: models/as_published, one file each, written from the public history."
    return Table("As-published, the replicas", columns, body, note)


def deviations(frame: pd.DataFrame, machine: str) -> Table:
    """How far each replica is from the attention it was named after, and in what it differs."""
    view = replica_views.view(frame, machine)
    body: list[tuple[Cell, ...]] = []
    for replica in REPLICAS:
        row = replica_views.largest(view, replica)
        if row is None:
            continue
        sums = [row[f"deviation_weight_sum_{end}"] for end in ("low", "high")]
        body.append(
            (
                published.name(replica),
                in_words.case(row, "type", "causal", "heads", "length"),
                float(row["relative_rms"]),
                named(row["deviation_variant"]),
                float(row["deviation_relative_rms"]),
                in_words.per_cent(row["deviation_zero_rows"]),
                _span(*sums),
                float(row["deviation_of_other_tokens"]),
                float(row["deviation_of_future_tokens"]),
            )
        )
    columns = (
        "System",
        "Case",
        "Error, own formula",
        "Exact system",
        "Error, exact",
        "Rows of zeros",
        "Weights of a row",
        "Other tokens",
        "Future tokens",
    )
    note = (
        f"Measured: {view.device}. Errors are relative rms distances from a float64 formula on "
        "sampled rows: of the replica's own, by which it is checked, and of the exact system's. "
        "Weights of a row: their sum, least to largest, 1 in attention. Other tokens: largest "
        "change of the first token's output when all others are drawn anew. Future tokens: when "
        "causal, of the first half when the second is drawn anew; 0 in attention."
    )
    return Table("As-published, what it computes", columns, body, note)


def plots(frame: pd.DataFrame, machine: str) -> Table:
    """Time at a constant number of tokens against length, over that of the shortest length."""
    view = replica_views.view(frame, machine)
    curves = replica_views.curves(view)
    body: list[tuple[Cell, ...]] = []
    for curve in curves:
        for row in curve.rows:
            body.append(
                (
                    named(curve.variant),
                    f"{curve.rates}: {' '.join(map(str, row['dilation_rates']))}",
                    tokens(row["seq_len"]),
                    str(row["batch"]),
                    time_cell(row),
                    1 if row is curve.rows[0] else cell(curve.share(row), "{:.3f}"),
                    float(curve.model(row)),
                )
            )
    columns = ("System", "Rates", "Length", "Batch", "Time (ms)", "Share", "Model")
    read = ", ".join(
        f"{share:g} (plot of {plot.upper()})"
        for plot in SHARES
        if (share := replica_views.plot_share(plot)) is not None
    )
    note = (
        f"Measured: {view.device}. Share: over the time at the shortest length. Model: counted "
        "pairs, which is the sum of w / r² over the branches of a head each. "
        + (
            f"Read off the published plots, from the longest segment on: {read}; that of 64M has "
            "three branches."
            if read
            else ""
        )
    )
    return Table("As-published, the plots of 2023", columns, body, note.strip())


def _span(low: float, high: float) -> str:
    """Two numbers as one where they are the same to three digits."""
    ends = [number(float(f"{end:.3g}")) for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)
