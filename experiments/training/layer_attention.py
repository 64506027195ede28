"""The attention of one layer of a model as a workload, to be checked against the oracle."""

from __future__ import annotations

from dataclasses import fields

import torch

from experiments.case import Case
from experiments.training.case import TrainingCase
from experiments.training.recipes import RECIPES, run_config
from experiments.workload import Workload
from models.language.attention import VariantAttention
from models.language.chosen_blocks import chosen_mask
from models.language.config import LongNetConfig
from models.registry import VARIANTS


def attention_of(case: TrainingCase, device: str) -> Workload:
    """Seeded normal tensors of one sequence, and a layer's attention over them.

    The case of the workload is that of an attention: of one sequence, and without a backward pass
    where the variant's gradients are not those of its values, as the oracle's are.
    """
    recipe = RECIPES[case.recipe]
    variant = VARIANTS[case.variant]
    shape = {one.name: getattr(case, one.name) for one in fields(Case)}
    is_checked = variant.has_exact_gradients
    shape |= {"batch": 1, "pass_": "forward_backward" if is_checked else "forward"}
    sizes = {"vocab_size": recipe.vocab_size, "max_seq_len": case.seq_len}
    config = LongNetConfig(**sizes, **run_config(case, case.seed).model)
    attention = VariantAttention(config, is_causal=True, group=None)
    generator = torch.Generator(device).manual_seed(case.seed)

    def normal(heads: int) -> torch.Tensor:
        tensor = torch.empty(1, case.seq_len, heads, case.head_dim, device=device)
        return tensor.normal_(generator=generator).to(getattr(torch, case.dtype))

    inputs = [normal(heads) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    if attention.chooses_blocks:
        options = {"sparsity": config.sparsity, "block_size": config.block_size, "is_causal": True}
        pattern = chosen_mask(inputs[0][0], inputs[1][0], **options)
    elif attention.masks is not None:
        pattern = attention.masks.of(case.seq_len, torch.device(device))
    else:
        pattern = attention.branches
    for one in inputs:
        one.requires_grad_(is_checked)
    run = attention.over(case.seq_len, torch.device(device))
    cotangent = normal(case.heads) if is_checked else None
    return Workload(Case(**shape), variant, inputs, run, pattern, cotangent, None)
