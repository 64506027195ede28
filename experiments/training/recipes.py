"""Recipes: what a model learns and how, by name, beside its attention: `recipes.yaml`. No torch.

A case names its recipe and says the shape of the attention; both together are the configuration of
a training run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from experiments.plain_yaml import loads
from experiments.training.config import DataConfig, RunConfig, TrainingConfig, check_names
from models.errors import as_integer

PATH = Path(__file__).with_suffix(".yaml")
TEXT = "text"
# What may be told of a validation: Kneser-Ney models of these orders, in grams of bytes.
ORDERS = (3, 5)
# Files are named after cases, and these after recipes.
_NAME = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True)
class Recipe:
    """What a training is besides its attention.

    Args:
        name: of the recipe: a-z, 0-9 and "-".
        layers: of the model.
        source: what it learns, one of `experiments.training.sources.SOURCES`.
        options: of the source.
        training: see `TrainingConfig`; its seed is drawn.
        ffn_ratio: width of the feed-forward layers over that of the model.
        seeds: trainings of a case in a round, each from a seed of its own.

    Raises:
        ValueError: naming the field.
    """

    name: str
    layers: int
    source: str
    training: TrainingConfig
    options: Mapping[str, object] = field(default_factory=dict)
    ffn_ratio: int = 4
    seeds: int = 4

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r}: expected a-z, 0-9 and -")
        for name in ("layers", "ffn_ratio", "seeds"):
            object.__setattr__(self, name, as_integer(name, getattr(self, name)))
        if not isinstance(self.training, TrainingConfig):
            check_names(TrainingConfig, "training.", self.training)
            object.__setattr__(self, "training", TrainingConfig(**self.training))

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return int(self.options.get("vocab_size", 256))


def _read() -> dict[str, Recipe]:
    found = {}
    for name, values in loads(PATH.read_text(encoding="utf-8")).items():
        try:
            check_names(Recipe, "", {"name": name, **values})
            found[name] = Recipe(name, **values)
        except ValueError as error:
            raise ValueError(f"{PATH.name}: {name}: {error}") from None
    return found


RECIPES: Mapping[str, Recipe] = MappingProxyType(_read())


def run_config(case, seed: int) -> RunConfig:
    """The configuration of one training of a case, as `python -m experiments train` takes it.

    Args:
        case: a `experiments.training.case.TrainingCase`.
        seed: of the first weights and of the data, but for the text that is validated.
    """
    recipe = RECIPES[case.recipe]
    model = {
        "attention": case.variant,
        "layers": recipe.layers,
        "embed_dim": case.heads * case.head_dim,
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "ffn_dim": recipe.ffn_ratio * case.heads * case.head_dim,
    }
    if case.segment_lengths is not None:
        model |= {
            "segment_lengths": list(case.segment_lengths),
            "dilation_rates": list(case.dilation_rates),
            "head_offset": case.head_offset,
        }
    if case.pattern is not None:
        model |= {name: getattr(case, name) for name in ("pattern", "sparsity", "block_size")}
    return RunConfig(
        model=model,
        data=DataConfig(recipe.source, case.seq_len, case.batch, seed, recipe.options),
        training=replace(recipe.training, seed=seed, precision=case.dtype),
    )
