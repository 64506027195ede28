"""Tables of `memory`: peaks by length, KiB per token, what card a length needs, growth."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.memory import views as memory_views
from analysis.experiments.memory.views import (
    EXPERIMENT,
    TOKEN_BATCH,
    TOKEN_LENGTH,
    VRAM_BATCH,
    VRAM_LENGTHS,
)
from analysis.records import systems
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import DASH, span, tokens
from analysis.selection import published, views
from analysis.standard import in_words, quantities
from analysis.standard.beside import printed
from analysis.standard.cells import cell, exponent_cell, memory_cell
from analysis.statistics import curves

CASE = ("type", "causal", "heads", "batch")
PASSES = {False: "forward", True: "forward, backward"}
RESIDENT = " On a CPU a peak is the growth of the process, in whole pages."


def peaks(frame: pd.DataFrame, machine: str) -> Table:
    """Peak memory beyond the inputs, one column per length."""
    view = views.view(frame, EXPERIMENT, machine)
    series = memory_views.together(view)
    lengths = sorted({n for one in series for n in one.lengths})
    body: list[tuple[Cell, ...]] = []
    for one in series:
        case = in_words.case(vars(one), *CASE)
        for system in one.systems:
            rows = [one.row(system, n) for n in lengths]
            name = published.name(system)
            body.append((PASSES[one.training], case, name, *map(_peak, rows)))
    columns = ("Pass", "Case", "System", *(f"{tokens(n)} (MiB)" for n in lengths))
    note = f"True peak of an untimed pass beyond its inputs, {view.device}.{resident([view])}"
    return Table("Memory, peaks by length", columns, body, note)


def per_token(frame: pd.DataFrame, machine: str) -> Table:
    """Kibibytes per token, published beside measured, and at the longest length measured."""
    view = views.view(frame, EXPERIMENT, machine)
    one = memory_views.growth(view, "forward")
    old = printed("ring", TOKEN_BATCH, TOKEN_LENGTH)
    body: list[tuple[Cell, ...]] = []
    for system in systems.ordered({*systems.of_experiment(EXPERIMENT), *view.rows["system"]}):
        row = memory_views.at_token_length(view, system)
        timed = one.timed(system) if one else view.rows.iloc[:0]
        last = None if timed.empty else timed.iloc[-1]
        if row is None and last is None and old(system, "memory_per_token") == DASH:
            continue
        body.append(
            (
                published.name(system),
                old(system, "memory_per_token"),
                DASH if row is None else str(row["batch"]),
                *_per_token(row),
                DASH if last is None else tokens(int(last["seq_len"])),
                *_per_token(last),
            )
        )
    columns = (
        "System",
        "Published (KB/token)",
        "Batch",
        f"Peak at {TOKEN_LENGTH} (KiB/token)",
        f"With inputs at {TOKEN_LENGTH} (KiB/token)",
        "Longest",
        "Peak there (KiB/token)",
        "With inputs there (KiB/token)",
    )
    note = (
        f"Published: {TOKEN_LENGTH} tokens, float16, a KB of 1024 bytes; whether the inputs count "
        f"is not said. Measured: forward, not causal, {view.device}, {_types(view)}."
        f"{resident([view])}"
    )
    return Table("Memory, what a token takes", columns, body, note)


def vram(frame: pd.DataFrame, machine: str) -> Table:
    """The card that a length is said to need, beside the peak with the inputs at that shape."""
    view = views.view(frame, EXPERIMENT, machine)
    body: list[tuple[Cell, ...]] = []
    for n in VRAM_LENGTHS:
        old = printed("dilated", VRAM_BATCH, n)
        for system in memory_views.vram_systems():
            rows = [
                memory_views.vram_row(view, system, n, p) for p in ("forward", "forward_backward")
            ]
            if all(row is None for row in rows) and old(system, "vram") == DASH:
                continue
            cells: list[Cell] = []
            for row in rows:
                total = quantities.size(memory_views.total_bytes(row))
                cells += [_peak(row), cell(total)]
            body.append((str(n), published.name(system), old(system, "vram"), *cells))
    columns = (
        "Length",
        "System",
        "Published (MiB)",
        "Forward: peak (MiB)",
        "Forward: with inputs (MiB)",
        "Training: peak (MiB)",
        "Training: with inputs (MiB)",
    )
    note = (
        f"Published: least memory of a card, batch {VRAM_BATCH}, float16. Measured: batch "
        f"{VRAM_BATCH}, {memory_views.VRAM_HEADS} heads of 64, causal, {_types(view)}, "
        f"{view.device}; weights not counted.{resident([view])}"
    )
    return Table("Memory, what card a length needs", columns, body, note)


def growth(frame: pd.DataFrame, machine: str) -> Table:
    """The fits of every machine: exponent, model taken, weights of all that were compared."""
    body: list[tuple[Cell, ...]] = []
    measured = views.all_views(frame, EXPERIMENT, machine)
    is_cut = False
    for view in measured:
        found = memory_views.together(view)
        is_cut = is_cut or len(found) >= views.MOST_SERIES
        for one in found:
            case = in_words.case(vars(one), *CASE)
            for system in one.systems:
                fit = one.growth(system, "memory")
                if fit is None:
                    continue
                gone = memory_views.lost(one, system)
                body.append(
                    (
                        f"{view.device}, {PASSES[one.training]}, {case}",
                        published.name(system),
                        span(fit.n_range),
                        exponent_cell(fit),
                        fit.model,
                        *(_weight(fit.aicc_weights.get(model)) for model in curves.MODELS),
                        100 * fit.holdout_relative_error,
                        span(gone) if gone else DASH,
                    )
                )
    columns = (
        "Case",
        "System",
        "Lengths",
        "k",
        "Model",
        *(f"Weight of {model}" for model in curves.MODELS),
        "Held out (%)",
        "Ran out",
    )
    note = (
        "k of c + a n^k (a n^k below four lengths), 95 % interval of resampled residuals: a peak "
        "is one number, and its distance from the curve is all that is known of its noise. "
        "Weights: Akaike weights by AICc, a dash where there are too few lengths for a model. Held "
        "out: the model fitted without the longest length, there, over the peak, less 1. Ran out: "
        f"lengths out of memory or time, in no fit.{resident(measured)}"
    )
    if is_cut:
        note += f" Of each machine and pass at most {views.MOST_SERIES} shapes, of most systems."
    return Table("Memory, growth with length", columns, body, note)


def resident(measured: list[views.View]) -> str:
    """What the note of a table of peaks says where some of them are a CPU's."""
    return RESIDENT if any(view.is_cpu for view in measured) else ""


def _types(view: views.View) -> str:
    return " and ".join(sorted(set(view.rows["dtype"])))


def _peak(row: pd.Series | None) -> Cell:
    """The peak, or why there is none."""
    if row is not None and row["status"] != "ok":
        return in_words.outcome(row)
    return memory_cell(row)


def _weight(share: float | None) -> Cell:
    """To four decimals: below that a model is out."""
    return None if share is None else round(share, 4)


def _per_token(row: pd.Series | None) -> list[Cell]:
    """KiB per token of the peak, and with the inputs; or why there is none."""
    if row is not None and row["status"] != "ok":
        return [in_words.outcome(row)] * 2
    amounts = (quantities.bytes_of(row), memory_views.total_bytes(row))
    return [cell(quantities.per_token(row, amount)) for amount in amounts]
