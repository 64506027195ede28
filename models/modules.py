"""`nn.Module` wrappers around the functional API."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.dilated import BACKENDS, dilated_attention
from models.dilated import resolve_backend as resolve_backend
from models.errors import check_choice
from models.patterns.branches import DilatedBranches
from models.patterns.orders import check_order
from models.ring import call as ring
from models.ring.attention import ring_attention


class MultiheadDilatedAttention(nn.Module):
    """Multi-head dilated self-attention; stands in for `nn.MultiheadAttention(batch_first=True)`.

    Projections of q, k, v, `dilated_attention`, MAGNETO's sub-LayerNorm
    (arXiv 2210.06423, figure 2) and the output projection.

    embed_dim: E, a multiple of num_heads. segment_lengths, dilation_rates: the
    branches, in tokens. num_kv_heads: heads of k and v (grouped queries), a divisor
    of num_heads, None for as many. sub_layer_norm: False leaves the LayerNorm out.
    head_offset, backend: as in `dilated_attention`. ValueError on bad arguments.

    group: a ProcessGroup or 1-D DeviceMesh over whose ranks the sequence is sharded, in the
    `order` of `models.ring.shard` (in which long segments reach fewest ranks: "contiguous"); the
    module then takes this rank's tokens and works by `models.ring.ring_attention`, with its
    backends. Parameters are the same on all ranks, and so must be their gradients: add up those
    of all ranks, as for any module that sees a part of the tokens. None: the whole sequence.

    Put it into the layers before `nn.TransformerEncoder` is built around them: an
    encoder built first looks for nn.MultiheadAttention's own weights at inference.
    """

    # nn.TransformerEncoderLayer reads these: the second keeps it off its fused path,
    # which would take this module's weights and run dense attention with them.
    batch_first = True
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        segment_lengths,
        dilation_rates,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
        sub_layer_norm: bool = True,
        head_offset: str = "modulo",
        backend: str = "auto",
        group=None,
        order="contiguous",
        device=None,
        dtype=None,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim}: expected a multiple of num_heads={num_heads}")
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                f"num_kv_heads={num_kv_heads}: expected a divisor of num_heads={num_heads}"
            )
        check_choice("backend", backend, BACKENDS if group is None else ring.BACKENDS)
        check_order(order)
        self.group, self.order = group, order
        self.pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.backend = backend
        factory = {"device": device, "dtype": dtype}
        kv_dim = self.head_dim * num_kv_heads
        self.in_proj = nn.Linear(embed_dim, embed_dim + 2 * kv_dim, bias=bias, **factory)
        self.norm = nn.LayerNorm(embed_dim, **factory) if sub_layer_norm else nn.Identity()
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections, zero biases, unit LayerNorm."""
        for projection in (self.in_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()

    @property
    def in_proj_bias(self):
        """The joint bias of the q, k, v projections, as `nn.MultiheadAttention` names it."""
        return self.in_proj.bias

    def project(self, query, key=None, value=None):
        """q (B, N, H, D) and k, v (B, N, Hkv, D) of inputs (B, N, E); one GEMM if all are one."""
        sizes = (self.embed_dim, *(2 * [self.head_dim * self.num_kv_heads]))
        key = query if key is None else key
        value = key if value is None else value
        if key is query and value is query:
            projected = self.in_proj(query).split(sizes, dim=-1)
        else:
            weights = self.in_proj.weight.split(sizes)
            biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.split(sizes)
            inputs = (query, key, value)
            projected = [F.linear(*args) for args in zip(inputs, weights, biases, strict=True)]
        return tuple(x.unflatten(-1, (-1, self.head_dim)) for x in projected)

    def finish(self, out: torch.Tensor) -> torch.Tensor:
        """Sub-LayerNorm and output projection of attention outputs (B, N, H, D) -> (B, N, E)."""
        return self.out_proj(self.norm(out.flatten(2)))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, None]:
        """Self-attention over (B, N, E) tensors; returns (out (B, N, E), None).

        With a group these are this rank's tokens, and causality is by position in the whole.

        key_padding_mask: (B, N) bool, True where a key is not attended to, or float
        with 0 and -inf for the same. The N x N weights are never formed: ValueError
        for need_weights=True, and for any attn_mask but the causal one that
        `nn.TransformerEncoderLayer` passes along with is_causal=True.
        """
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.dim() != 3 or x.shape != query.shape or x.shape[-1] != self.embed_dim:
                raise ValueError(
                    f"{name}.shape={tuple(x.shape)}: expected (batch, tokens, {self.embed_dim}), "
                    "the same for query, key and value (self-attention)"
                )
        if need_weights:
            raise ValueError("need_weights=True: the attention weights are never formed")
        allowed = is_causal and self.group is None
        if attn_mask is not None and not (allowed and _is_causal_mask(attn_mask, query.shape[1])):
            raise ValueError(
                f"attn_mask={attn_mask.dtype} {tuple(attn_mask.shape)}: expected None, or the "
                "causal mask with is_causal=True, and no group"
            )
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            key_padding_mask = _as_bool_mask(key_padding_mask)
        return self.finish(self._attend(query, key, value, key_padding_mask, is_causal)), None

    def _attend(self, query, key, value, key_padding_mask, is_causal):
        options = {
            "is_causal": is_causal,
            "backend": self.backend,
            "key_padding_mask": key_padding_mask,
        }
        qkv = self.project(query, key, value)
        if self.group is not None:
            options |= {"pattern": self.pattern, "group": self.group, "order": self.order}
            return ring_attention(*qkv, **options)
        lists = (self.pattern.segment_lengths, self.pattern.dilation_rates)
        return dilated_attention(*qkv, *lists, head_offset=self.pattern.head_offset, **options)


def _is_causal_mask(mask: torch.Tensor, n: int) -> bool:
    blocked = mask if mask.dtype == torch.bool else mask.isneginf()
    future = torch.ones(n, n, dtype=torch.bool, device=mask.device).triu(1)
    only_blocks = mask.dtype == torch.bool or bool((mask[~blocked] == 0).all())
    return blocked.shape == future.shape and only_blocks and torch.equal(blocked, future)


def _as_bool_mask(mask: torch.Tensor) -> torch.Tensor:
    blocked = mask.isneginf()
    if not bool((blocked | (mask == 0)).all()):
        raise ValueError("key_padding_mask: a float mask may hold 0 and -inf only")
    return blocked
