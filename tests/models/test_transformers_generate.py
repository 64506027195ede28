"""Hugging Face's language models on our attention: steps with a cache give what the whole would."""

import pytest
import torch

pytest.importorskip("transformers", reason="no transformers (envs/peers.txt)")

from transformers import DynamicCache

from tests.models.language_models import DILATED, LEFT, both, close, ids, model


def greedy(source, tokens, steps, attention_mask=None):
    """Each step by the whole sequence, without a cache: the tokens, and the logits of each."""
    logits = []
    mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
    for _ in range(steps):
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        out = source(tokens, attention_mask=mask, position_ids=places, use_cache=False)
        logits.append(out.logits[:, -1])
        tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return tokens, logits


@torch.no_grad()
@both
@pytest.mark.parametrize("kind", ("qwen3", "gpt2"))
@pytest.mark.parametrize("padded", (False, True), ids=("whole", "padded"))
def test_generating_with_a_cache_is_generating_without(name, kind, padded):
    """From 13 tokens over the ends of segments and blocks, token by token."""
    ours = model(name, kind=kind)
    tokens = ids(3, 13)
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, :5] = mask[2, :12] = 0
    want, logits = greedy(ours, tokens, 28, mask)
    got = ours.generate(
        tokens, attention_mask=mask, max_new_tokens=28, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert torch.equal(got.sequences, want)
    assert isinstance(got.past_key_values, DynamicCache)
    close(torch.stack(got.logits), torch.stack(logits))


@torch.no_grad()
@both
@pytest.mark.parametrize("mask", (None, LEFT), ids=("whole", "padded"))
def test_several_tokens_at_a_time_against_a_cache(name, mask):
    """As many as 20, and as few as one; the second row's first tokens are padding."""
    ours = model(name)
    kept = torch.ones(2, 45, dtype=bool) if mask is None else mask.bool()
    want, cache = ours(ids(), attention_mask=mask).logits, DynamicCache()
    outs = []
    for start, end in ((0, 5), (5, 10), (10, 30), (30, 31), (31, 45)):
        own = None if mask is None else mask[:, :end]
        out = ours(ids()[:, start:end], attention_mask=own, past_key_values=cache)
        outs.append(out.logits)
    close(torch.cat(outs, dim=1)[kept], want[kept])


@torch.no_grad()
def test_beams_generate_as_without_a_cache():
    ours = model(DILATED)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    got = ours.generate(ids(2, 13), **options)
    assert torch.equal(got, ours.generate(ids(2, 13), use_cache=False, **options))
