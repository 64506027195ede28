"""Tiny language models of Hugging Face's with our attention, for the tests of them."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from models.transformers_attention import BLOCK_SPARSE, DILATED, use_block_sparse, use_dilated

LISTS = ((8, 32), (1, 3))
LIMIT = 96
VOCABULARY = 53
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": LIMIT,
    # Large, so that attention is far from uniform.
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
# GPT-2 says that attention with a mask is not causal, as its N x N masks are.
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gpt2": GPT2Config}
each_model = pytest.mark.parametrize("kind", CONFIGS)
both = pytest.mark.parametrize("name", (DILATED, BLOCK_SPARSE))


def config(kind="llama", **options):
    if kind == "gpt2":
        options |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    made = CONFIGS[kind](**(SIZES | options))
    use_dilated(made, *LISTS)
    use_block_sparse(made, "random", sparsity=0.5, block_size=8, heads=4)
    return made


def model(name, made=None, **options):
    torch.manual_seed(0)
    made = config(**options) if made is None else made
    return AutoModelForCausalLM.from_config(made, attn_implementation=name).eval()


def twin(source, name):
    """The same weights with other attention."""
    other = model(name, AutoConfig.for_model(**source.config.to_dict()))
    other.load_state_dict(source.state_dict())
    return other


def ids(batch=2, n=45, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, n), generator=generator)


def close(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max())


LEFT, RIGHT, AROUND = (
    torch.tensor([[start <= i < end for i in range(45)] for start, end in runs]).long()
    for runs in (((0, 45), (11, 45)), ((0, 45), (0, 29)), ((3, 40), (0, 0)))
)
HOLE = LEFT.roll(3, dims=1)
