"""What a training is made of between two steps: weights, the optimiser's averages, the step."""

from __future__ import annotations

import torch
from torch import nn

from experiments.training.config import OptimiserConfig


def adamw(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only.

    Args:
        model: its parameters that want a gradient are trained. Weights of embeddings (those tied
            to a projection too) and whatever has less than two dimensions, as norms and biases
            have, do not decay.
        config: betas and weight decay; the learning rate is set in each step.

    Returns:
        The optimiser, with two groups of parameters.
    """
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for one in model.parameters():
        if one.requires_grad:
            groups[one.dim() >= 2 and id(one) not in embeddings].append(one)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


class TrainingState:
    """A model in training, after so many steps.

    Batches are functions of the step, and what a model draws is seeded by it: nothing else need be
    kept to go on to the bit.

    Attributes:
        model: its weights are changed in place.
        optimiser: of its weights.
        step: steps done.
    """

    def __init__(self, model: nn.Module, config: OptimiserConfig):
        self.model, self.optimiser, self.step = model, adamw(model, config), 0

    def to_dict(self) -> dict:
        """All of it, as `torch.save` takes it; the tensors are not copied."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, saved: dict) -> None:
        """Go back to what `to_dict` gave, on whatever device.

        Raises:
            ValueError: where it is of another model.
        """
        try:
            self.model.load_state_dict(saved["model"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"saved: of another model: {' '.join(str(error).split())}") from None
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step = saved["step"]
