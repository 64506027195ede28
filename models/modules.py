"""`nn.Module` wrappers around the functional API."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from models.dilated import BACKENDS, dilated_attention
from models.dilated import resolve_backend as resolve_backend
from models.errors import as_integer, check_choice
from models.padding import check_padding_mask
from models.patterns.branches import DilatedBranches
from models.patterns.curves import Grid
from models.patterns.orders import check_order
from models.ring import call as ring
from models.ring.attention import ring_attention
from models.ring.options import group_name, process_group


class MultiheadDilatedAttention(nn.Module):
    """Multi-head dilated self-attention; a drop-in for `nn.MultiheadAttention`.

    Projections of q, k, v, `dilated_attention`, MAGNETO's sub-LayerNorm
    (arXiv 2210.06423, figure 2) and the output projection.

    `nn.MultiheadAttention`'s state dict can be loaded and leaves the LayerNorm as it is. Put the
    module into the layers before `nn.TransformerEncoder` is built around them: an encoder built
    first looks for `nn.MultiheadAttention`'s own weights at inference.

    With a group, parameters are the same on all ranks, and so must be their gradients: add up
    those of all ranks, as for any module that computes a part of the tokens. A copy of the module
    keeps the group; a pickle keeps its name, and finds the group of that name again.

    Args:
        embed_dim: E, a multiple of num_heads.
        num_heads: H.
        segment_lengths: w of each branch, tokens.
        dilation_rates: r of each branch.
        num_kv_heads: Hkv, a divisor of H (grouped queries); None for H.
        bias: whether the projections have one.
        sub_layer_norm: whether there is a LayerNorm before the output projection.
        head_offset: as of `dilated_attention`.
        backend: as of `dilated_attention`, with a group as of `models.ring.ring_attention`.
        group: a ProcessGroup or 1-D DeviceMesh over whose ranks the sequence is sharded; the
            module then takes this rank's tokens. None for the whole sequence.
        order: of the shards, as of `models.ring.shard`; in "contiguous" long segments span the
            fewest ranks.
        batch_first: False for (N, B, E) tensors, the default of `nn.MultiheadAttention`.
        dropout, add_bias_kv, add_zero_attn, kdim, vdim: of `nn.MultiheadAttention`; only the
            values that change nothing are accepted.
        device, dtype: of the parameters.

    Raises:
        ValueError: on bad arguments.
    """

    # Keeps nn.TransformerEncoderLayer from its fused path, which would run dense attention with
    # this module's weights.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        segment_lengths: Sequence[int],
        dilation_rates: Sequence[int],
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
        sub_layer_norm: bool = True,
        head_offset: str = "modulo",
        backend: str = "auto",
        group: dist.ProcessGroup | DeviceMesh | None = None,
        order: str | Grid = "contiguous",
        batch_first: bool = True,
        dropout: float = 0.0,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        embed_dim, num_heads = (
            as_integer("embed_dim", embed_dim),
            as_integer("num_heads", num_heads),
        )
        num_kv_heads = as_integer(
            "num_kv_heads", num_heads if num_kv_heads is None else num_kv_heads
        )
        refused = {"dropout": (dropout, 0.0), "add_bias_kv": (add_bias_kv, False)}
        refused |= {"add_zero_attn": (add_zero_attn, False)}
        refused |= {"kdim": (kdim, embed_dim), "vdim": (vdim, embed_dim)}
        for name, (value, only) in refused.items():
            if value is not None and value != only:
                raise ValueError(f"{name}={value!r}: expected {only!r}; {_WHY_REFUSED[name]}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim}: expected a multiple of num_heads={num_heads}")
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_kv_heads={num_kv_heads}: expected a divisor of num_heads={num_heads}"
            )
        check_choice("backend", backend, BACKENDS if group is None else ring.BACKENDS)
        check_order(order)
        if group is not None:
            group = process_group(group_name(group))
        self.group, self.order, self.batch_first = group, order, bool(batch_first)
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
        """Initialise: Xavier-uniform projections, zero biases, unit LayerNorm."""
        for projection in (self.in_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()

    @property
    def in_proj_bias(self) -> torch.Tensor | None:
        """The joint bias of the q, k, v projections, as `nn.MultiheadAttention` names it."""
        return getattr(self.in_proj, "bias", None)

    def project(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The projections of the inputs.

        Each input goes through `in_proj`, with its hooks and adapters, once. Where query, key and
        value differ, each gets all three projections, of which one is used.

        Args:
            query: (B, N, E).
            key: (B, N, E), None for the query.
            value: (B, N, E), None for the key.

        Returns:
            q (B, N, H, D) and k, v (B, N, Hkv, D).
        """
        key = query if key is None else key
        value = key if value is None else value
        of_query, of_key, of_value = _each(self._project, query, key, value)
        return of_query[0], of_key[1], of_value[2]

    def _project(self, x: torch.Tensor) -> list[torch.Tensor]:
        sizes = (self.embed_dim, *(2 * [self.head_dim * self.num_kv_heads]))
        parts = self.in_proj(x).split(sizes, dim=-1)
        return [part.unflatten(-1, (-1, self.head_dim)) for part in parts]

    def finish(self, out: torch.Tensor) -> torch.Tensor:
        """Sub-LayerNorm and output projection.

        Args:
            out: (B, N, H, D), attention outputs.

        Returns:
            (B, N, E).
        """
        return self.out_proj(self.norm(out.flatten(2)))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        document_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Self-attention, with the arguments of `nn.MultiheadAttention.forward`.

        With a group the tokens are this rank's, and causality is by position in the whole.

        Args:
            query, key, value: (B, N, E), or (N, B, E) where not batch_first.
            key_padding_mask: (B, N) bool, True where a key is not attended to, or float with -inf
                there and 0 elsewhere.
            need_weights: must be False, as the N x N weights are never computed.
            attn_mask: None, or the causal mask that `nn.TransformerEncoderLayer` passes together
                with is_causal=True, (N, N) bool or float.
            average_attn_weights: without effect, as there are no weights.
            is_causal: whether a query attends to keys up to itself only.
            document_ids: (B, N) integers, as of `dilated_attention`; not with a group.

        Returns:
            out, in query's shape, and None.

        Raises:
            ValueError: on bad arguments.
            RuntimeError: inside torch.compile, for a mask with other values, when it runs.
            UnsupportedBackend: where the backend cannot compute this.
        """
        for name, x in (("query", query), ("key", key), ("value", value)):
            got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            layout = "(batch, tokens, {})" if self.batch_first else "(tokens, batch, {})"
            layout = layout.format(self.embed_dim)
            if not isinstance(x, torch.Tensor) or x.dim() != 3 or x.shape[-1] != self.embed_dim:
                raise ValueError(f"{name}.shape={got}: expected {layout}")
            if x.shape != query.shape:
                raise ValueError(
                    f"{name}.shape={got}: expected {tuple(query.shape)}, as query's: this is "
                    "self-attention, whose segments are cut from one sequence"
                )
        if need_weights:
            raise ValueError(
                "need_weights=True: expected False, as the attention weights are never computed"
            )
        if not self.batch_first:
            query, key, value = _each(lambda x: x.transpose(0, 1), query, key, value)
        for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
            if not isinstance(mask, torch.Tensor | None):
                raise ValueError(f"{name}={type(mask).__name__}: expected a tensor or None")
        if attn_mask is not None:
            self._check_causal(attn_mask, query.shape[1], is_causal)
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            key_padding_mask = _as_bool_mask(key_padding_mask)
        if key_padding_mask is not None:
            check_padding_mask(key_padding_mask, query)
            # NaN in padding would reach the gradients of the projections: 0 x NaN.
            padded = key_padding_mask[..., None]
            query, key, value = _each(
                lambda x: x.masked_fill(padded & ~x.isfinite(), 0.0), query, key, value
            )
        if document_ids is not None and self.group is not None:
            raise ValueError("document_ids: expected None with a group of ranks")
        out = self._attend(query, key, value, key_padding_mask, document_ids, is_causal)
        out = self.finish(out)
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _check_causal(self, attn_mask, n: int, is_causal: bool) -> None:
        message = (
            f"attn_mask={attn_mask.dtype} {tuple(attn_mask.shape)}: expected None, or the "
            "causal mask with is_causal=True, and no group"
        )
        if not is_causal or self.group is not None or attn_mask.shape != (n, n):
            raise ValueError(message)
        blocked = attn_mask if attn_mask.dtype == torch.bool else attn_mask.isneginf()
        future = torch.ones(n, n, dtype=torch.bool, device=attn_mask.device).triu(1)
        only_blocks = (blocked | (attn_mask == 0)).all()
        _require((blocked == future).all() & only_blocks, "attn_mask is not causal", message)

    def _attend(self, query, key, value, key_padding_mask, document_ids, is_causal):
        options = {
            "is_causal": is_causal,
            "backend": self.backend,
            "key_padding_mask": key_padding_mask,
        }
        qkv = self.project(query, key, value)
        if self.group is not None:
            options |= {"pattern": self.pattern, "group": self.group, "order": self.order}
            return ring_attention(*qkv, **options)
        options |= {"head_offset": self.pattern.head_offset, "document_ids": document_ids}
        lists = (self.pattern.segment_lengths, self.pattern.dilation_rates)
        return dilated_attention(*qkv, *lists, **options)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """Accept `nn.MultiheadAttention`'s names too; it has no LayerNorm to load."""
        is_theirs = f"{prefix}in_proj_weight" in state_dict
        for name in ("weight", "bias"):
            if f"{prefix}in_proj_{name}" in state_dict:
                value = state_dict.pop(f"{prefix}in_proj_{name}")
                state_dict[f"{prefix}in_proj.{name}"] = value
        if is_theirs:
            for name, value in self.norm.state_dict().items():
                if not value.is_meta:
                    state_dict.setdefault(f"{prefix}norm.{name}", value)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __getstate__(self):
        state = self.__dict__.copy()
        if isinstance(self.group, dist.ProcessGroup):
            state["group"] = self.group.group_name
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if isinstance(self.group, str):
            self.group = _group_named(self.group)


_WHY_REFUSED = {
    "dropout": "attention weights are never computed, so none can be dropped",
    "add_bias_kv": "keys and values are those of the sequence alone",
    "add_zero_attn": "keys and values are those of the sequence alone",
    "kdim": "this is self-attention",
    "vdim": "this is self-attention",
}


def _group_named(name: str) -> dist.ProcessGroup | str:
    """The process group of that name; the name itself where this process has no such group."""
    try:
        return process_group(name)
    except (LookupError, RuntimeError, ValueError):
        return name


def _each(function, query, key, value) -> tuple:
    """`function` of each input, called once for inputs that are one tensor."""
    of_query = function(query)
    of_key = of_query if key is query else function(key)
    if value is query or value is key:
        return of_query, of_key, of_query if value is query else of_key
    return of_query, of_key, function(value)


def _as_bool_mask(mask: torch.Tensor) -> torch.Tensor:
    blocked = mask.isneginf()
    _require(
        (blocked | (mask == 0)).all(), "key_padding_mask: a float mask may hold 0 and -inf only"
    )
    return blocked


def _require(holds: torch.Tensor, message: str, details: str = "") -> None:
    """ValueError unless the bool tensor is True; compiled code checks it when it runs.

    message: a constant, as compiled code needs; details: the message otherwise.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(holds, message)
    elif not bool(holds):
        raise ValueError(details or message)
