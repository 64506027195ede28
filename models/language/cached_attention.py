"""The attention of a layer that keeps its keys and values: of a prompt, and of one token more.

Both give what the variant gives for the whole sequence: a prompt goes through the variant itself, a
further token through `models.language.one_query`.
"""

from __future__ import annotations

from functools import partial

import torch

from models.language.attention import Attend, VariantAttention
from models.language.cache import KeyValueCache
from models.language.chosen_blocks import block_means, chosen_row, kept_blocks
from models.language.one_query import attend_in_branches, attend_to_all, attend_to_blocks


def prompt_attention(
    attention: VariantAttention,
    cache: KeyValueCache,
    layer: int,
    attend: Attend,
    key_padding_mask: torch.Tensor | None,
) -> Attend:
    """The attention of a prompt, which fills an empty cache.

    Args:
        attention: of the model.
        cache: that is written to.
        layer: its number.
        attend: the variant's, over the prompt.
        key_padding_mask: (B, N) bool, True where a key is not attended to, or None.

    Returns:
        (q (B, N, H, D), k, v (B, N, Hkv, D)) -> (B, N, H, D).
    """

    def run(q, k, v):
        kept = (k, v)
        if key_padding_mask is not None:
            # A weight of 0 times inf or NaN would be NaN in every step.
            kept = (x.masked_fill(key_padding_mask[:, :, None, None], 0.0) for x in kept)
        kept_k, kept_v = kept
        cache.write(layer, kept_k, kept_v)
        if attention.chooses_blocks:
            size = attention.block_size
            last = (q.shape[1] - 1) // size
            cache.means[layer] = block_means(kept_k, size)[:, :, :last]
            _choose(attention, cache, layer, q[:, last * size])
        return attend(q, k, v)

    return run


def step_attention(attention: VariantAttention, cache: KeyValueCache, layer: int) -> Attend:
    """The attention of the token after those held.

    Args:
        attention: of the model.
        cache: that is read and written to.
        layer: its number.

    Returns:
        (q (B, 1, H, D), k, v (B, 1, Hkv, D)) -> (B, 1, H, D).
    """
    return partial(_step, attention, cache, layer)


def _step(attention, cache, layer, q, k, v):
    cache.write(layer, k, v)
    n = cache.length
    tensors = (q, *cache.of(layer, n + 1))
    if attention.branches is not None:
        out, cache.keys_read = attend_in_branches(*tensors, attention.branches)
    elif attention.block_size is not None:
        blocks = _blocks(attention, cache, layer, *tensors[:2])
        out, cache.keys_read = attend_to_blocks(*tensors, blocks, attention.block_size)
    else:
        out, cache.keys_read = attend_to_all(*tensors)
    return out


def _blocks(attention, cache, layer, q, k):
    """The key blocks of the newest token, (1 or B, 1 or H, kept)."""
    size, n = attention.block_size, cache.length
    if not attention.chooses_blocks:
        return attention.masks.row(n // size)[None].to(q.device)
    if n % size == 0:
        complete = block_means(k[:, n - size : n], size)
        cache.means[layer] = torch.cat([cache.means[layer], complete], dim=2)
        _choose(attention, cache, layer, q[:, 0])
    return cache.choices[layer]


def _choose(attention, cache, layer, q):
    """The key blocks of the block after those whose means are held; q (B, H, D)."""
    means = cache.means[layer]
    kept = int(kept_blocks(torch.tensor([means.shape[2] + 1]), attention.sparsity))
    cache.choices[layer] = chosen_row(q, means, kept)
