"""What a case of training will cost: its trainings side by side, and steps that are timed alone."""

from __future__ import annotations

import math

from experiments.cost.pairs import useful_flops
from experiments.cost.rates import Device
from experiments.grid import Limits
from experiments.training.case import TrainingCase
from experiments.training.recipes import RECIPES

# Of small matrices, over the rate of large ones; and of a step's small operations, per layer.
_SHARE, _LAYER_MS = {"cpu": 0.3, "cuda": 0.25}, {"cpu": 2.5, "cuda": 3.0}
# Passes over validation cost a third of a step per batch. The check, the data, the models.
_FORWARD, _REFERENCE_S = 1 / 3, 1.5


def parts(
    case: TrainingCase, limits: Limits, rates: Device, cores: int, replicates: int
) -> tuple[float, float, float, float, float]:
    """Expected seconds: start-up, reference, trainings, timed steps; and those of one step alone.

    cores: of a CPU, on as many of which trainings run at once.
    """
    recipe = RECIPES[case.recipe]
    rate = 1e9 * rates.matmul_gflops[case.dtype] * _SHARE[rates.kind]
    step = useful_flops(case) / rate + 1e-3 * _LAYER_MS[rates.kind] * recipe.layers
    training = recipe.training
    validated = math.ceil(training.steps / training.evaluate_every) * training.evaluation_batches
    turns = math.ceil(recipe.seeds / cores) if rates.kind == "cpu" else recipe.seeds
    trained = turns * step * (training.steps + _FORWARD * validated)
    samples = max(limits.min_samples * step, min(limits.sample_seconds, limits.max_samples * step))
    start = (1 + replicates) * rates.process_s
    return start, _REFERENCE_S, replicates * trained, replicates * samples, step
