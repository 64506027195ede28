"""The part of an expected record (`analysis.across.expected_records`) that tells of trainings."""

from __future__ import annotations

from experiments.cost.pairs import dense_pairs, whole_pairs
from experiments.plausible_trainings import evaluated_after
from experiments.training.case import TrainingCase
from experiments.training.flops import matrices
from experiments.training.recipes import ORDERS, RECIPES, TEXT

# Bits per byte of text, and of a token that is recalled, before and after.
_FIRST, _LAST = {True: 8.0, False: 5.0}, {True: 2.4, False: 0.2}


def learning(case: TrainingCase) -> dict:
    """The record's `learning`."""
    recipe = RECIPES[case.recipe]
    is_text = recipe.source == TEXT
    package = {"name": "stdlib", "version": "3.12", "licence": "PSF-2.0", "files": 1, "bytes": 1}
    return {
        "source": recipe.options.get("corpus", "python") if is_text else recipe.source,
        "sha256": 64 * "0" if is_text else None,
        "packages": [package] if is_text else None,
        "facts": {} if is_text else {"chance_accuracy": 1 / recipe.vocab_size},
        "parameters": matrices(case),
        "n_gram_losses": {str(n): 3.5 - 0.2 * n for n in ORDERS} if is_text else None,
    }


def trainings(case: TrainingCase, step_ms: float) -> list[dict]:
    """The record's `trainings`: the sparser the attention is, the less is learnt."""
    return [_training(case, step_ms, seed) for seed in range(RECIPES[case.recipe].seeds)]


def _training(case: TrainingCase, step_ms: float, seed: int) -> dict:
    recipe = RECIPES[case.recipe]
    is_text, plan = recipe.source == TEXT, recipe.training
    kept = min(1.0, whole_pairs(case) / dense_pairs(case))
    last = _LAST[is_text] * (1.5 - 0.5 * kept) + 0.01 * seed
    steps = evaluated_after(plan)
    losses = [last + (_FIRST[is_text] - last) * (1 - step / plan.steps) ** 2 for step in steps]
    tokens = 4096
    lengths = [2**k for k in range(case.seq_len.bit_length() - 1)]
    ranges = [
        {"first": first, "tokens": tokens // len(lengths), "loss": last, "accuracy": kept}
        for first in lengths
    ]
    ranges[-1]["tokens"] += tokens - sum(one["tokens"] for one in ranges)
    return {
        "seed": seed,
        "steps": plan.steps,
        "steps_s": 1e-3 * step_ms * plan.steps,
        "step_losses": losses,
        "evaluations": [
            {"step": step, "loss": loss, "accuracy": kept}
            for step, loss in zip(steps, losses, strict=True)
        ],
        "tokens": tokens,
        "by_position": ranges,
        "by_distance": [] if is_text else ranges,
    }
