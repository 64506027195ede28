"""Dilated attention (LongNet, arXiv 2307.02486): all heads in all branches, mixed exactly.

Backends: "gather", the paper's steps in plain PyTorch; "sdpa", PyTorch's fused attention on
strided views, no copy of q, k, v; "sdpa-cudnn", cuDNN's on the same; "triton", our fused kernels,
which join the branches too; "triton-tf32", these with float32 products rounded to TF32; "gluon",
a warp-specialised forward for Hopper, with the gradients of "triton".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from models import documents, kernels
from models.dilated_op import PASSES, dilated
from models.errors import UnsupportedBackend, check_choice
from models.fused_ops import fused_op, why_not_cudnn
from models.inputs import prepared
from models.merge import merge
from models.ops import without_autocast
from models.patterns.branches import DilatedBranches, HeadPartition

BACKENDS = ("auto", "gather", "sdpa", "sdpa-cudnn", "triton", "triton-tf32", "gluon")


def dilated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    head_offset: str = "modulo",
    backend: str = "auto",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Dilated self-attention, exactly `softmax(S + log C) V`.

    C counts the branches in which a query attends to a key (LongNet, arXiv 2307.02486, sections
    2.2-2.3). Gradients are exact, through the mixing weights and the LSE.

    Args:
        q: (B, N, H, D), float64, float32, float16 or bfloat16; accumulated in float32 at least.
        k, v: (B, N, Hkv, D), H a multiple of Hkv.
        segment_lengths: w of each branch, tokens, >= 1; any, also w > N.
        dilation_rates: r of each branch, >= 1; any, also where r does not divide w.
        is_causal: whether a query attends to keys up to itself only.
        scale: factor on q.k, None for 1/sqrt(D).
        head_offset: "modulo" (the paper) or "block" (torchscale).
        backend: one of BACKENDS. "auto" is "triton" for float16 and bfloat16 on CUDA, elsewhere
            "sdpa" where PyTorch has a fused op, else "gather". It is never "gluon", which has not
            run on a card yet.
        return_lse: return the LSE too.
        key_padding_mask: (B, N) bool, True where a key is not attended to, whatever it holds, NaN
            and inf too.
        document_ids: (B, N) integers; a token attends to those of its own document, all tokens
            with its id, and segments start anew with each.

    Returns:
        out (B, N, H, D) in q's dtype, and with `return_lse` also LSE (B, H, N), natural log,
        float32 (float64 for float64). A query without keys gives 0 and -inf.

    Raises:
        ValueError: on bad arguments.
        UnsupportedBackend: where `backend` cannot compute this; the message says why.
    """
    pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
    masks = (key_padding_mask, document_ids)
    return _attend(q, k, v, pattern, is_causal, scale, backend, return_lse, *masks)


def head_partitioned_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The head-partitioned form: each head is in one branch only (`patterns.HeadPartition`).

    This is what the `dilated-attention-pytorch` code base computed under the name
    DilatedAttention, without its division by the number of branches (which only
    scales the output). It is not LongNet; it is here to reproduce those measurements.

    Args:
        q, k, v, segment_lengths, dilation_rates, is_causal, scale, backend, return_lse,
            key_padding_mask, document_ids: as of `dilated_attention`.

    Returns:
        As `dilated_attention`; rows that a head does not keep are 0, their LSE -inf.

    Raises:
        ValueError, UnsupportedBackend: as `dilated_attention`.
    """
    pattern = HeadPartition(segment_lengths, dilation_rates)
    masks = (key_padding_mask, document_ids)
    return _attend(q, k, v, pattern, is_causal, scale, backend, return_lse, *masks)


def resolve_backend(q: torch.Tensor, backend: str, *, is_masked: bool = False) -> str:
    """The backend that a call runs.

    Args:
        q: (B, N, H, D).
        backend: one of BACKENDS.
        is_masked: whether the call has a key padding mask or document ids.

    Returns:
        One of BACKENDS other than "auto", "sdpa" with its op: "sdpa (cpu-flash)".

    Raises:
        ValueError: where there is no such backend.
        UnsupportedBackend: where a named one cannot compute this; the message says why.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "gather":
        return "gather"
    if backend not in ("auto", "sdpa"):
        reason = _why_not(backend, q, is_masked)
        if reason:
            raise UnsupportedBackend(f"{backend}: {reason}")
        return backend
    half_on_card = q.is_cuda and q.element_size() == 2
    if backend == "auto" and half_on_card and not _why_not_auto(q):
        return "triton"
    try:
        return f"sdpa ({fused_op(q, is_masked=is_masked).name})"
    except UnsupportedBackend:
        if backend == "sdpa":
            raise
        return "gather"


def _why_not(backend: str, q: torch.Tensor, is_masked: bool) -> str | None:
    """Why the named backend cannot take q (B, N, H, D), or None if it can."""
    if backend in ("sdpa-cudnn", "gluon") and is_masked:
        return "takes no key_padding_mask and no document_ids"
    others = {"sdpa-cudnn": why_not_cudnn, "gluon": _why_not_gluon}
    return others[backend](q) if backend in others else _why_not_triton(q, backend)


def _why_not_auto(q: torch.Tensor) -> str | None:
    """Why "auto" is not the Triton kernels for q (B, N, H, D), or None."""
    return kernels.why_withdrawn("dilated", str(q.dtype), q.shape[3]) or _why_not_triton(q)


def _why_not_triton(q: torch.Tensor, backend: str = "triton") -> str | None:
    """Why the Triton kernels cannot take q (B, N, H, D), or None if they can."""
    if not kernels.HAS_TRITON:
        return kernels.MISSING
    from models.kernels import tiles

    if backend == "triton-tf32" and q.dtype != torch.float32:
        return f"rounds float32 products, and q is {q.dtype}"
    return tiles.why_not(q) or tiles.why_no_tile("dilated", q)


def _why_not_gluon(q: torch.Tensor) -> str | None:
    """Why the Gluon kernel cannot take q (B, N, H, D), or None if it can."""
    if not kernels.HAS_TRITON:
        return kernels.MISSING
    from models.kernels import dilated_gluon

    return dilated_gluon.why_not(q)


def _attend(
    q, k, v, pattern, is_causal, scale, backend, return_lse, key_padding_mask, document_ids
):
    q, k, v, scale = prepared(q, k, v, scale, key_padding_mask, document_ids)
    masks, options = (key_padding_mask, document_ids), (pattern, bool(is_causal), scale)
    is_masked = key_padding_mask is not None or document_ids is not None
    backend = resolve_backend(q, backend, is_masked=is_masked)
    if backend == "gather":
        attend = partial(_gather, *options)
        tensors = (q, k, v, document_ids, key_padding_mask)
        out, lse = documents.attend_packed("gather", attend, *tensors)
    else:
        # "sdpa (cpu-flash)" is the op's "cpu-flash".
        name = backend.removeprefix("sdpa (").removesuffix(")").replace("sdpa", "cuda")
        lists = (list(pattern.segment_lengths), list(pattern.dilation_rates), pattern.head_offset)
        out, lse = dilated(q, k, v, *masks, *lists, *options[1:], name)
    return (out, lse) if return_lse else out


def _attend_fused(backend, pattern, is_causal, scale, q, k, v, key_padding_mask):
    from models.kernels import dilated as fused
    from models.kernels import dilated_gluon

    lists = (*fused.branch_lists(pattern, q.shape[2]), is_causal, scale)
    if backend == "gluon":
        return dilated_gluon.forward(q, k, v, *lists)
    return fused.forward(q, k, v, key_padding_mask, *lists, backend == "triton-tf32")


def _differentiate_fused(
    backend, pattern, is_causal, scale, grad_out, grad_lse, q, k, v, out, lse, key_padding_mask
):
    from models.kernels import dilated as fused

    lists = (*fused.branch_lists(pattern, q.shape[2]), is_causal, scale)
    tensors = (grad_out, grad_lse, q, k, v, out, lse, key_padding_mask)
    return fused.backward(*tensors, *lists, backend == "triton-tf32")


PASSES.update(
    {
        name: (partial(_attend_fused, name), partial(_differentiate_fused, name))
        for name in ("triton", "triton-tf32", "gluon")
    }
)


def _gather(pattern, is_causal, scale, q, k, v, key_padding_mask):
    """Per branch: gather the kept tokens, plain softmax attention, scatter back; then mix."""
    with without_autocast(q.device):
        return _gather_branches(pattern, is_causal, scale, q, k, v, key_padding_mask)


def _gather_branches(pattern, is_causal, scale, q, k, v, key_padding_mask):
    batch, n, heads, _ = q.shape
    dtype, accumulator = q.dtype, torch.promote_types(q.dtype, torch.float32)
    # In float32 at least: scores rounded to half precision would double flash's error.
    q, k, v = (x.to(accumulator) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    outs, lses = [], []
    for branch, (w, r) in enumerate(pattern.branches()):
        index, held = _kept_positions(pattern, branch, w, r, n, heads, q.device)
        segments, kept = index.shape[1:]
        head = torch.arange(heads, device=q.device)[:, None, None]
        # (B, H, segments, kept tokens, D)
        q_kept, k_kept, v_kept = (x.transpose(1, 2)[:, head, index] for x in (q, k, v))
        scores = scale * q_kept @ k_kept.transpose(-1, -2)
        allowed = held[:, :, None, :]
        if is_causal:
            allowed = allowed & torch.ones(kept, kept, device=q.device).tril().bool()
        if key_padding_mask is not None:
            allowed = allowed & ~key_padding_mask[:, index][..., None, :]
        # In place, as the scores are the only large array. The shift cancels in the result, so
        # it needs no gradient.
        scores = scores.masked_fill_(~allowed, -torch.inf)
        shift = scores.detach().amax(dim=-1, keepdim=True)
        is_empty = shift.isneginf()
        shift = shift.masked_fill(is_empty, 0.0)
        weights = scores.sub_(shift).exp_()
        total = weights.sum(dim=-1, keepdim=True).masked_fill(is_empty, 1.0)
        out = weights @ v_kept / total
        lse = (shift + total.log()).masked_fill(is_empty, -torch.inf).squeeze(-1)
        # Places past the end of a short segment point at token n, which is cut off again.
        rows = torch.where(held, index, n).flatten(1)
        full_out = out.new_zeros(batch, heads, n + 1, out.shape[-1])
        full_lse = lse.new_full((batch, heads, n + 1), -torch.inf)
        head = head[:, :, 0]
        places = (torch.arange(batch, device=q.device)[:, None, None], head, rows)
        full_out = full_out.index_put(places, out.flatten(2, 3))
        full_lse = full_lse.index_put(places, lse.flatten(2, 3))
        outs.append(full_out[:, :, :n].transpose(1, 2))
        lses.append(full_lse[:, :, :n])
    out, lse = merge(outs, lses)
    return out.to(dtype), lse


def _kept_positions(pattern, branch, w, r, n, heads, device):
    """Kept positions (H, segments, kept) of every head, and which of these places are held."""
    w = min(w, n)
    starts = torch.arange(0, n, w, device=device)[:, None]
    steps = torch.arange(0, w, r, device=device)[None, :]
    offsets = [pattern.offset(branch, h, heads) for h in range(heads)]
    missing = torch.tensor([o is None for o in offsets], device=device)[:, None, None]
    offset = torch.tensor([o or 0 for o in offsets], device=device)[:, None, None]
    index = starts + steps + offset
    held = (steps + offset < w) & (index < n) & ~missing
    return torch.where(held, index, 0), held
