"""Numbers of `memory` for the prose: growth of peaks, KiB per token, what a length needs."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.memory import views as memory_views
from analysis.experiments.memory.views import (
    EXPERIMENT,
    TOKEN_BATCH,
    TOKEN_LENGTH,
    VRAM_LENGTHS,
    at_token_length,
    total_bytes,
    vram_row,
)
from analysis.records import systems
from analysis.rendering.numbers import entry
from analysis.selection import views
from analysis.standard import number_entries, quantities
from analysis.standard.number_entries import tokens

PASSES = {"forward": "forward", "training": "forward_backward"}


def of_peaks(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """Key -> entry; keys do not depend on what was measured, as in `standard.numbers`."""
    own = systems.of_experiment(EXPERIMENT)
    found: dict[str, dict] = {}
    for name, pass_ in PASSES.items():
        one = memory_views.growth(view, pass_)
        for system in own:
            found |= {f"{name}.{k}": v for k, v in _growth(one, system).items()}
    for system in own:
        row = at_token_length(view, system)
        each = quantities.per_token(row, total_bytes(row), "KiB/token")
        found[f"per_token.{system}"] = number_entries.of(each, [row])
    for system in memory_views.vram_systems():
        for n in VRAM_LENGTHS:
            for name, pass_ in PASSES.items():
                row = vram_row(view, system, n, pass_)
                total = number_entries.of(quantities.size(total_bytes(row)), [row])
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
    rows = [row for _, row in one.timed(system).iterrows()]
    weight = fit.aicc_weights.get(fit.model)
    ends = (int(n) for n in fit.n_range)
    return found | {
        f"exponent.{system}": number_entries.exponent(fit, rows),
        f"model.{system}": entry(fit.model, rows=rows),
        f"weight.{system}": entry(
            weight, text=None if weight is None else f"{weight:.2f}", rows=rows
        ),
        **{
            f"{end}.{system}": tokens(n)
            for end, n in zip(("shortest", "longest"), ends, strict=True)
        },
    }
