"""A language model of some hundred weights, and configurations, for the tests of training."""

import copy

import torch
from torch import nn

from experiments.training.config import OptimiserConfig, TrainingConfig

VALUES = {
    "model": {
        "attention": "dilated-sdpa",
        "layers": 1,
        "embed_dim": 16,
        "heads": 2,
        "segment_lengths": [8, 16],
        "dilation_rates": [1, 2],
    },
    "data": {
        "source": "associative_recall",
        "seq_len": 16,
        "batch": 4,
        "options": {"vocab_size": 16, "pairs": 2},
    },
    "training": {
        "steps": 20,
        "optimiser": {"learning_rate": 0.01, "warm_up_steps": 3},
        "evaluate_every": 10,
        "evaluation_batches": 2,
    },
    "output": {"checkpoint_every": 4},
}


class Tiny(nn.Module):
    """Logits out of each token and the mean of those up to it."""

    def __init__(self, vocab_size=16, dropout=0.0, seed=0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocab_size, 8)
            self.mix = nn.Linear(16, 8)
            self.norm = nn.LayerNorm(8)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(8, vocab_size, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        count = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[:, None]
        x = torch.cat([x, x.cumsum(1) / count], dim=-1)
        return self.head(self.dropout(self.norm(self.mix(x).tanh())))


def values(**changes):
    """VALUES with other fields: section_field=value, or section=None to leave it out."""
    made = copy.deepcopy(VALUES)
    for name, value in changes.items():
        section, _, field = name.partition("_")
        if field:
            made.setdefault(section, {})[field] = value
        elif value is None:
            del made[section]
        else:
            made[section] = value
    return made


def training(**changes):
    """A TrainingConfig of a few steps; what OptimiserConfig has goes to it."""
    optimiser = {"learning_rate": 0.01}
    for name in list(changes):
        if name in OptimiserConfig.__dataclass_fields__:
            optimiser[name] = changes.pop(name)
    fields = {"steps": 6, "evaluate_every": 3, "evaluation_batches": 2}
    return TrainingConfig(optimiser=OptimiserConfig(**optimiser), **{**fields, **changes})


def weights(model):
    """A copy of a model's weights by name."""
    return {name: one.detach().clone() for name, one in model.state_dict().items()}
