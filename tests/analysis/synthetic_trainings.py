"""Trainings for synthetic records: what is learnt by known numbers, and seeds around them.

The mean over the seeds of a record, and over three rounds, is exactly `loss` and `accuracy`.
"""

from __future__ import annotations

import numpy as np

from experiments.case import Case
from experiments.cost.pairs import useful_flops
from experiments.plausible_trainings import evaluated_after
from experiments.training.case import TrainingCase
from experiments.training.flops import matrices
from experiments.training.recipes import ORDERS, RECIPES, TEXT
from models.registry import VARIANTS

# Bits that an attention lacks of dense attention: by who builds its blocks at 90 % sparsity (in
# proportion to it), by variant, per branch, and with offsets by blocks of heads.
PATTERNS = {
    "local_window": 0.04,
    "dilated": 0.16,
    "global_local": 0.06,
    "strided": 0.1,
    "random": 0.3,
    "top_k": 0.02,
}
DETACHED, OF_BRANCH, BLOCK_OFFSET = 0.12, 0.03, 0.002
# The last losses of dense attention at 256 tokens; a doubling takes away so much of text.
LOSS, DOUBLING = {True: 2.4, False: 0.3}, 0.08
FIRST_LOSS, N_GRAMS = {True: 8.0, False: 7.0}, {3: 2.9, 5: 2.3}
# From the first seed to the last, in bits; and from one round to the next.
SEEDS, ROUND = 0.03, 0.002
# From the mean to the first position's loss.
POSITION = 0.4
# Accuracy up to the distance that an attention reaches, and from there on.
NEAR, FAR, DENSE_NEAR = 0.95, 0.1, 0.98
TOKENS = 512  # asked in each range


def is_training(case: Case) -> bool:
    return isinstance(case, TrainingCase)


def step_ms(case: TrainingCase) -> float:
    """The time of a step on the synthetic CPU."""
    return 2.0 + useful_flops(case) / 2e7


def gap(case: TrainingCase) -> float:
    """Bits that the case lacks of dense attention."""
    takes = VARIANTS[case.variant].takes
    if takes == "blocks":
        return PATTERNS[case.pattern] * case.sparsity / 0.9
    if takes is None:
        return 0.0
    detached = 0.0 if VARIANTS[case.variant].has_exact_gradients else DETACHED
    offset = BLOCK_OFFSET if case.head_offset == "block" else 0.0
    return OF_BRANCH * len(case.segment_lengths) + detached + offset


def loss(case: TrainingCase) -> float:
    """The mean of the last losses, bits."""
    is_text = RECIPES[case.recipe].source == TEXT
    return LOSS[is_text] + gap(case) - DOUBLING * np.log2(case.seq_len / 256) * is_text


def reach(case: TrainingCase) -> int:
    """The distance from which on answers are not found: all of them by dense attention."""
    return case.seq_len if gap(case) == 0 else max(2, round(1 / gap(case)))


def accuracy_at(case: TrainingCase, distance: int) -> float:
    """The share of answers that are right in the range that begins there."""
    if gap(case) == 0:
        return DENSE_NEAR
    return NEAR if distance < reach(case) else FAR


def distances(case: TrainingCase) -> list[int]:
    """The first of each range that is asked at."""
    return [2**k for k in range(case.seq_len.bit_length() - 1)]


def accuracy(case: TrainingCase) -> float:
    """The mean of the last accuracies."""
    return float(np.mean([accuracy_at(case, distance) for distance in distances(case)]))


def learning(case: TrainingCase) -> dict:
    """The record's `learning`."""
    recipe = RECIPES[case.recipe]
    is_text = recipe.source == TEXT
    package = {"name": "stdlib", "version": "3.12", "licence": "PSF-2.0", "files": 1, "bytes": 9}
    facts = {"train_bytes": 65536} if is_text else {"chance_accuracy": 1 / recipe.vocab_size}
    return {
        "source": recipe.source,
        "sha256": 64 * "a" if is_text else None,
        "packages": [package] if is_text else None,
        "facts": facts,
        "parameters": matrices(case),
        "n_gram_losses": {str(n): N_GRAMS[n] for n in ORDERS} if is_text else None,
    }


def seconds(case: Case, median_ms: float) -> float:
    """Of all trainings of a replicate, one after another; 0 of a case that is none."""
    if not is_training(case):
        return 0.0
    recipe = RECIPES[case.recipe]
    return 1e-3 * median_ms * recipe.training.steps * recipe.seeds


def trainings(case: TrainingCase, median_ms: float, number: int) -> list[dict]:
    """The `trainings` of a replicate in a round, from 1."""
    count = RECIPES[case.recipe].seeds
    offsets = np.linspace(-SEEDS / 2, SEEDS / 2, count) if count > 1 else np.zeros(1)
    return [
        _training(case, median_ms, 1000 * number + seed, offset + ROUND * (number - 2))
        for seed, offset in enumerate(offsets)
    ]


def _training(case: TrainingCase, median_ms: float, seed: int, offset: float) -> dict:
    plan = RECIPES[case.recipe].training
    is_text = RECIPES[case.recipe].source == TEXT
    last, share = loss(case) + offset, accuracy(case) - offset / 10
    steps = evaluated_after(plan)
    left = [(1 - step / plan.steps) ** 2 for step in steps]
    losses = [last + (FIRST_LOSS[is_text] - last) * part for part in left]
    places = distances(case)
    slope = np.linspace(POSITION, -POSITION, len(places)) if len(places) > 1 else [0.0]
    return {
        "seed": seed,
        "steps": plan.steps,
        "steps_s": 1e-3 * median_ms * plan.steps,
        "step_losses": losses,
        "evaluations": [
            {"step": step, "loss": float(found), "accuracy": float(share * (1 - part))}
            for step, found, part in zip(steps, losses, left, strict=True)
        ],
        "tokens": TOKENS * len(places),
        "by_position": [
            {"first": first, "tokens": TOKENS, "loss": float(last + more), "accuracy": float(share)}
            for first, more in zip(places, slope * (last / 4), strict=True)
        ],
        "by_distance": []
        if is_text
        else [
            {
                "first": first,
                "tokens": TOKENS,
                "loss": float(last),
                "accuracy": float(accuracy_at(case, first) - offset / 10),
            }
            for first in places
        ],
    }
