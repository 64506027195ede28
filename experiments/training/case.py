"""A case of training: an attention in a language model, on a task, by a recipe. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.case import Case, CaseError
from experiments.training.recipes import RECIPES
from models.registry import VARIANTS

HEAD_OFFSETS = ("modulo", "block")
_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainingCase(Case):
    """A point of an experiment that trains models.

    The fields of `Case` are the shape of each layer's attention: `batch` rows of `seq_len` tokens
    are a step, the width of the model is heads * head_dim, and a half precision is that of
    autocast. Always causal, forward and backward.

    recipe: name of one of `experiments.training.recipes`, which says the rest: what is learnt, by
    how many layers and steps. head_offset: of dilated branches, as of `models.dilated_attention`.
    """

    recipe: str = ""
    head_offset: str = "modulo"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.recipe, str) or self.recipe not in RECIPES:
            raise CaseError(f"recipe={self.recipe!r}: expected one of {', '.join(RECIPES)}")
        if self.head_offset not in HEAD_OFFSETS:
            expected = ", ".join(HEAD_OFFSETS)
            raise CaseError(f"head_offset={self.head_offset!r}: expected one of {expected}")
        has_offsets = VARIANTS[self.variant].pattern_class == "DilatedBranches"
        if self.head_offset != "modulo" and not has_offsets:
            expected = f"modulo, {self.variant} has no other"
            raise CaseError(f"head_offset={self.head_offset!r}: expected {expected}")
        if not self.is_causal:
            raise CaseError(f"is_causal={self.is_causal}: expected true, of a training")
        if self.pass_ != "forward_backward":
            raise CaseError(f"pass={self.pass_!r}: expected forward_backward, of a training")
        if self.dtype not in _DTYPES:
            expected = " or ".join(_DTYPES)
            raise CaseError(f"dtype={self.dtype!r}: expected {expected}, of a training")
        if self.world_size is not None:
            raise CaseError(f"world_size={self.world_size}: expected none, of a training")

    @property
    def name(self) -> str:
        """As of `Case`, with the recipe and a head offset other than the paper's behind it."""
        offset = [] if self.head_offset == "modulo" else [f"{self.head_offset}-offset"]
        return "_".join([super().name, *offset, self.recipe])
