"""Our attention in Hugging Face's models: `attn_implementation="long-context-dilated"`.

    from models.transformers_attention import use_dilated

    use_dilated(config, (2048, 4096, 8192), (1, 2, 4))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="long-context-dilated")

Importing this module registers "long-context-dilated" and "long-context-block-sparse" with
transformers' AttentionInterface and AttentionMaskInterface. The pattern is kept in the model's
config, and so in its config.json: a saved model is loaded by `from_pretrained(path,
attn_implementation="long-context-dilated")` once this module is imported.

Forward, backward, and `generate` with a dynamic cache, whose steps give what the whole sequence
would. A masked token is never attended to, and positions are counted from the first token of a row
that is not masked: a sequence gives the same alone and in a padded batch. What cannot be done
raises ValueError, which names it; nothing falls back to other attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch

from models.attention_at_offset import (
    block_sparse_attention_at_offset,
    dilated_attention_at_offset,
)
from models.block_sparse import block_sparse_attention
from models.dilated import dilated_attention
from models.errors import as_integer, check_choice
from models.padded_rows import Rows, WholeRows
from models.patterns import block_builders
from models.patterns.block_leading import leading
from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches
from models.transformers_masks import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    rows,
)

DILATED = "long-context-dilated"
BLOCK_SPARSE = "long-context-block-sparse"
BLOCK_PATTERNS = ("local_window", "dilated", "global_local", "strided", "random")

# What models pass along that changes nothing in attention.
_WITHOUT_EFFECT = {"cache_position", "num_items_in_batch", "output_hidden_states"}
_WITHOUT_EFFECT |= {"output_router_logits", "position_ids", "return_dict", "use_cache"}


def use_dilated(
    config: PretrainedConfig,
    segment_lengths: tuple[int, ...],
    dilation_rates: tuple[int, ...],
    *,
    head_offset: str = "modulo",
) -> None:
    """Keep the pattern of "long-context-dilated" in a config, as `config.long_context_dilated`.

    Args:
        config: of a decoder-only model, changed in place.
        segment_lengths, dilation_rates, head_offset: as of `models.dilated_attention`.

    Raises:
        ValueError: on bad arguments, and for a model that does not take attention by name.
    """
    config = _config_of_attention(config)
    pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
    config.long_context_dilated = {
        "segment_lengths": list(pattern.segment_lengths),
        "dilation_rates": list(pattern.dilation_rates),
        "head_offset": head_offset,
    }


def use_block_sparse(
    config: PretrainedConfig,
    pattern: str,
    *,
    sparsity: float,
    block_size: int = 64,
    **options: int,
) -> None:
    """Keep the mask of "long-context-block-sparse" in a config, as `config.long_context_blocks`.

    The mask is that of `config.max_position_embeddings` tokens, and a shorter sequence has its
    leading blocks, so that what a token attends to does not depend on how many follow it.

    Args:
        config: of a decoder-only model, changed in place.
        pattern: one of BLOCK_PATTERNS.
        sparsity, block_size: as of `models.patterns.local_window`.
        options: others of the builder in `models.patterns`: heads, global_blocks, seed.

    Raises:
        ValueError: on bad arguments, and for a model that does not take attention by name.
    """
    config = _config_of_attention(config)
    if pattern == "top_k":
        raise ValueError(
            "pattern='top_k': expected another, as a block's list comes from all of its queries: "
            "of those after a token too"
        )
    check_choice("pattern", pattern, BLOCK_PATTERNS)
    known = inspect.signature(getattr(block_builders, pattern)).parameters
    for name, value in options.items():
        if name in ("seq_len", "is_causal", "device") or name not in known:
            raise ValueError(f"{name}={value!r}: {pattern} takes no such option here")
        options[name] = as_integer(name, value, least=0)
    heads, of_model = options.get("heads", 1), getattr(config, "num_attention_heads", None)
    if heads not in (1, of_model):
        raise ValueError(f"heads={heads}: expected 1 or the model's {of_model}")
    as_integer("config.max_position_embeddings", getattr(config, "max_position_embeddings", None))
    # The builder checks what it is given.
    mask = getattr(block_builders, pattern)(1, sparsity=sparsity, block_size=block_size, **options)
    kept = {"pattern": pattern, "sparsity": float(sparsity), "block_size": mask.block_size}
    config.long_context_blocks = kept | options


def _config_of_attention(config) -> PretrainedConfig:
    """The config that attention modules see, of a model that can take our attention."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if not isinstance(config, PretrainedConfig):
        raise ValueError(f"config={type(config).__name__}: expected a transformers config")
    _check_decoder(config)
    model = MODEL_MAPPING.get(type(config), None)
    for one in model if isinstance(model, tuple) else (model,):
        if one is not None and not one._supports_attention_backend:
            raise ValueError(
                f"config={type(config).__name__}: {one.__name__} takes no attention by name "
                "(transformers' AttentionInterface)"
            )
    return config.get_text_config()


def _check_decoder(config) -> None:
    for name in ("is_encoder_decoder", "add_cross_attention"):
        if getattr(config, name, False):
            raise ValueError(f"config.{name}=True: expected a model with self-attention only")


def _forward(
    name: str,
    make: Callable,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Rows | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers.

    Args:
        name: under which it is registered.
        make: (config, is_causal, scale) -> the function for `Rows.attend`.
        module: of attention, with its config.
        query: (B, H, n, D).
        key, value: (B, Hkv, N, D), those of a cache and then the new ones.
        attention_mask: what `models.transformers_masks.rows` returns, with which attention is
            causal; None from models that make no mask.
        scaling: factor on q.k, None for 1/sqrt(D).
        dropout: must be 0.
        is_causal: without a mask; None for what the module says.
        others: must be without effect.

    Returns:
        out (B, n, H, D), and None for the weights, which are never computed.

    Raises:
        ValueError: on bad arguments, and for what cannot be done.
    """
    if dropout:
        raise ValueError(
            f"dropout={dropout} (config.attention_dropout): expected 0, as attention weights are "
            "never computed"
        )
    for given, value_of in others.items():
        if given not in _WITHOUT_EFFECT and value_of is not None and value_of is not False:
            raise ValueError(f"{given}={_shown(value_of)}: {name} cannot do this")
    config = module.config
    _check_decoder(config)
    if getattr(config, "output_attentions", False):
        raise ValueError("config.output_attentions=True: attention weights are never computed")
    if "Cross" in type(module).__name__:
        raise ValueError(f"module={type(module).__name__}: {name} is self-attention")
    if not isinstance(attention_mask, Rows | None):
        raise ValueError(
            f"attention_mask={_shown(attention_mask)}: expected None, or (batch, tokens) as the "
            "argument of the model"
        )
    if attention_mask is not None:
        is_causal = True  # some models say False then, as a mask of N x N pairs would have it
    elif is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    attend = make(config, bool(is_causal), scaling)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return (attention_mask or WholeRows()).attend(attend, q, k, v), None


def _shown(value: object) -> str:
    """A value in a message: a tensor by its dtype and shape."""
    is_tensor = isinstance(value, torch.Tensor)
    return f"{value.dtype} {tuple(value.shape)}" if is_tensor else repr(value)


def _dilated(config, is_causal, scale) -> Callable:
    pattern = _pattern_of(config, "long_context_dilated", "use_dilated")
    heads = getattr(config, "num_attention_heads", None)

    def attend(q, k, v, **masks):
        if heads is not None and q.shape[2] != heads:
            raise ValueError(
                f"query has {q.shape[2]} heads: expected the model's {heads}, as offsets are by "
                "head (no tensor parallelism)"
            )
        if _is_step(q, k, is_causal):
            return dilated_attention_at_offset(q, k, v, **pattern, scale=scale)
        return dilated_attention(q, k, v, **pattern, is_causal=is_causal, scale=scale, **masks)

    return attend


def _block_sparse(config, is_causal, scale) -> Callable:
    pattern = _pattern_of(config, "long_context_blocks", "use_block_sparse")
    limit = config.max_position_embeddings

    def attend(q, k, v, **masks):
        tokens = k.shape[1]
        if tokens > limit:
            raise ValueError(
                f"key has {tokens} tokens: expected at most config.max_position_embeddings={limit}"
            )
        mask = _whole_mask(tuple(sorted(pattern.items())), limit, is_causal, q.device)
        if _is_step(q, k, is_causal):
            return _step_of_blocks(q, k, v, mask, scale=scale)
        mask = _leading(mask, -(-tokens // mask.block_size))
        return block_sparse_attention(q, k, v, mask, is_causal=is_causal, scale=scale, **masks)

    return attend


def _pattern_of(config, name: str, setter: str) -> dict[str, Any]:
    pattern = getattr(config, name, None)
    if pattern is None:
        raise ValueError(f"config.{name} is missing: {setter} of {__name__} sets it")
    return pattern


def _is_step(q, k, is_causal: bool) -> bool:
    """Whether the queries are the last of more tokens, whose keys come from a cache."""
    if q.shape[1] == k.shape[1]:
        return False
    if not is_causal:
        raise ValueError(
            f"query has {q.shape[1]} tokens and key {k.shape[1]}: expected as many, as the module "
            "is not causal"
        )
    return True


# Masks are made, and read on the host, outside of what torch.compile compiles.
@torch.compiler.disable(reason="block masks are made on the host")
@lru_cache(maxsize=4)
def _whole_mask(pattern: tuple, seq_len: int, is_causal: bool, device: torch.device) -> BlockMask:
    options = dict(pattern)
    check_choice("config.long_context_blocks: pattern", options["pattern"], BLOCK_PATTERNS)
    build = getattr(block_builders, options.pop("pattern"))
    with torch.inference_mode(False):  # a later call may save it for backward
        return build(seq_len, **options, is_causal=is_causal, device=device)


@torch.compiler.disable(reason="block masks are made on the host")
@lru_cache(maxsize=64)
def _leading(mask: BlockMask, blocks: int) -> BlockMask:
    with torch.inference_mode(False):
        return leading(mask, blocks)


_step_of_blocks = torch.compiler.disable(
    block_sparse_attention_at_offset, reason="block masks are read on the host"
)

for _name, _make in ((DILATED, _dilated), (BLOCK_SPARSE, _block_sparse)):
    AttentionInterface.register(_name, partial(_forward, _name, _make))
    AttentionMaskInterface.register(_name, rows)
