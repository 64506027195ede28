"""Which tokens of a batch there are, from what transformers says of masks.

Its models make the mask of a call once, by the function that an attention implementation has
registered, and pass what it returns to every layer as `attention_mask`. Here that is no N x N mask
but the rows of `models.padded_rows`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from models.padded_rows import PackedRows, PaddedRows, Rows, WholeRows

try:
    from transformers import AttentionInterface as AttentionInterface
    from transformers import AttentionMaskInterface as AttentionMaskInterface
    from transformers import PretrainedConfig as PretrainedConfig
    from transformers.masking_utils import causal_mask_function
except ImportError as error:
    raise ImportError(
        "our attention in Hugging Face's models needs transformers >= 4.57, < 5: `make peers`, or "
        "pip install -r envs/peers.txt"
    ) from error


@torch.compiler.disable(reason="padding and positions are read on the host")
def rows(
    batch_size: int,
    cache_position: torch.Tensor,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    *,
    local_size: int | None = None,
    **_: Any,
) -> Rows:
    """What models pass to their layers as `attention_mask`: made once per call of a model.

    Args:
        batch_size: B.
        cache_position: (n,) positions of the queries.
        kv_length: N, keys including those of the cache.
        kv_offset: position of the first key.
        mask_function: which pairs of positions attend.
        attention_mask: (B, N) bool, False where a key is padding.
        local_size: of a sliding window or of chunks.
        _: the dtype of masks, and whether a causal mask may be left out.

    Returns:
        The rows, in which attention is causal.

    Raises:
        ValueError: for what cannot be done.
    """
    if local_size is not None:
        raise ValueError(
            f"config.sliding_window or attention_chunk_size={local_size}: expected None"
        )
    document_ids = _packed(mask_function)
    first, last = cache_position[[0, -1]].tolist()
    n = len(cache_position)
    if kv_offset or last != kv_length - 1 or first != kv_length - n:
        raise ValueError(
            f"cache_position={first} to {last} and {kv_length} keys from {kv_offset} on: expected "
            "keys that end with the queries, as of a DynamicCache (a StaticCache has room for more)"
        )
    if document_ids is not None and bool((document_ids != document_ids[:, :1]).any()):
        return PackedRows(document_ids)
    if attention_mask is None:
        return WholeRows()
    if attention_mask.shape != (batch_size, kv_length):
        raise ValueError(
            f"attention_mask.shape={tuple(attention_mask.shape)}: expected (batch, keys) = "
            f"{(batch_size, kv_length)}"
        )
    return WholeRows() if bool(attention_mask.all()) else PaddedRows.of(attention_mask.bool())


def _packed(mask_function: Callable) -> torch.Tensor | None:
    """The sequence that each token is of, (B, N), None for a causal mask alone.

    transformers joins conditions in closures, which are opened here; any other than causality and
    packed sequences is refused.
    """
    if mask_function is causal_mask_function:
        return None
    functions = inspect.getclosurevars(mask_function).nonlocals.get("mask_functions", ())
    if len(functions) == 2 and functions[0] is causal_mask_function:
        found = inspect.getclosurevars(functions[1]).nonlocals
        if list(found) == ["packed_sequence_mask"]:
            return found["packed_sequence_mask"]
    raise ValueError(
        f"mask_function={getattr(mask_function, '__qualname__', mask_function)}: expected a causal "
        "mask, of one or of packed sequences"
    )
