"""The learning rate of each step: a linear warm-up, then half a cosine (arXiv 1608.03983)."""

from __future__ import annotations

import math

from experiments.training.config import OptimiserConfig


def learning_rate(step: int, steps: int, optimiser: OptimiserConfig) -> float:
    """The learning rate of a step.

    Args:
        step: from 1 to steps.
        steps: of the whole training.
        optimiser: its highest learning rate, the warm-up and the last step's fraction.

    Returns:
        highest * step / warm_up_steps in the warm-up, then from the highest at its end to
        final_fraction * highest at the last step.
    """
    highest, warm_up = optimiser.learning_rate, optimiser.warm_up_steps
    if step <= warm_up:
        return highest * step / warm_up
    progress = (step - warm_up) / (steps - warm_up)
    lowest = optimiser.final_fraction * highest
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2
