"""FLOPs of a training step, in closed form. No torch."""

from __future__ import annotations

from experiments.training.case import TrainingCase
from experiments.training.recipes import RECIPES


def matrices(case: TrainingCase) -> int:
    """Weights that each token is multiplied by: projections, feed-forward layers and the output."""
    recipe = RECIPES[case.recipe]
    width, kv_width = case.heads * case.head_dim, case.kv_heads * case.head_dim
    of_layer = width * (2 * width + 2 * kv_width) + 2 * recipe.ffn_ratio * width**2
    return recipe.layers * of_layer + recipe.vocab_size * width


def matrix_flops(case: TrainingCase) -> int:
    """FLOPs of a step without those of query-key pairs: 6 per token and weight, 4 of them backward.

    That is 2 per multiplication and addition; norms, activations and the optimiser are not counted.
    """
    return 6 * case.batch * case.seq_len * matrices(case)
