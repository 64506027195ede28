"""Numbers of `memory` for the prose: growth of peaks, what a token takes, what a length needs."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.memory import views as memory_views
from analysis.experiments.memory.views import (
    EXPERIMENT,
    TOKEN_BATCH,
    TOKEN_LENGTH,
    VRAM_LENGTHS,
    at_token_length,
    vram_row,
)
from analysis.records import systems
from analysis.records.units import KIB, MIB
from analysis.rendering.numbers import entry
from analysis.rendering.text import interval
from analysis.selection import views
from analysis.standard.number_entries import tokens

PASSES = {"forward": "forward", "training": "forward_backward"}


def of_peaks(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """Key -> entry; keys do not depend on what was measured, as in `analysis.findings`."""
    own = systems.of_experiment(EXPERIMENT)
    found: dict[str, dict] = {}
    for name, pass_ in PASSES.items():
        one = memory_views.growth(view, pass_)
        for system in own:
            found |= {f"{name}.{k}": v for k, v in _growth(one, system).items()}
    for system in own:
        row = at_token_length(view, system)
        found[f"per_token.{system}"] = _amount(row, KIB, "KiB/token", per_token=True)
    for system in memory_views.vram_systems():
        for n in VRAM_LENGTHS:
            for name, pass_ in PASSES.items():
                total = _amount(vram_row(view, system, n, pass_), MIB, "MiB")
                found[f"{name}.total.{system}.n{n}"] = total
    return found | {"per_token.tokens": tokens(TOKEN_LENGTH), "per_token.batch": entry(TOKEN_BATCH)}


def _growth(one: views.Series | None, system: str) -> dict[str, dict]:
    """Exponent, model with its weight, range, and the first length that was too long."""
    fit = one.growth(system, "memory") if one else None
    lost = memory_views.lost(one, system) if one else []
    found = {f"ran_out.{system}": tokens(lost[0] if lost else None)}
    if fit is None:
        words = ("exponent", "model", "weight", "shortest", "longest")
        return found | {f"{word}.{system}": entry(None) for word in words}
    k, rows = fit.exponent, [row for _, row in one.timed(system).iterrows()]
    weight = fit.aicc_weights.get(fit.model)
    ends = (int(n) for n in fit.n_range)
    text = interval(k.value, k.low, k.high, "{:.2f}")
    return found | {
        f"exponent.{system}": entry(k.value, k.low, k.high, text=text, rows=rows),
        f"model.{system}": entry(fit.model, rows=rows),
        f"weight.{system}": entry(
            weight, text=None if weight is None else f"{weight:.2f}", rows=rows
        ),
        **{
            f"{end}.{system}": tokens(n)
            for end, n in zip(("shortest", "longest"), ends, strict=True)
        },
    }


def _amount(row: pd.Series | None, size: int, unit: str, per_token: bool = False) -> dict:
    """The peak with the inputs."""
    total = memory_views.total_bytes(row)
    if total is None:
        return entry(None, unit=unit, rows=[row])
    return entry(
        total / size / (row["batch"] * row["seq_len"] if per_token else 1), unit=unit, rows=[row]
    )
