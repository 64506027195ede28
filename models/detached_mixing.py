"""Dilated attention whose mixing weights have no gradient, as torchscale trains it.

The forward pass is `models.dilated_attention`. torchscale (`DilatedAttention.scattering`) computes
the weights of the branches under `torch.no_grad`, so that its gradients lack the part through the
softmax denominators; this is that training rule, to be compared with the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.dilated import dilated_attention
from models.dilated import resolve_backend as resolve_backend
from models.merge import merge
from models.patterns.branches import DilatedBranches


def detached_dilated_attention(
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
    """Dilated attention `sum_b sg(a_b) O_b`, with `a_b = exp(LSE_b - LSE)` and sg(x) = x, constant.

    Values are those of `models.dilated_attention`; gradients are those of the branches' outputs
    O_b alone, each weighed by a_b, and so not those of the values.

    Args:
        q, k, v, segment_lengths, dilation_rates, is_causal, scale, head_offset, backend,
            return_lse, key_padding_mask, document_ids: as of `models.dilated_attention`.

    Returns:
        As `models.dilated_attention`; the LSE has no gradient.

    Raises:
        ValueError, UnsupportedBackend: as `models.dilated_attention`.
    """
    pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
    outs, lses = [], []
    for w, r in pattern.branches():
        out, lse = dilated_attention(
            q,
            k,
            v,
            [w],
            [r],
            is_causal=is_causal,
            scale=scale,
            head_offset=head_offset,
            backend=backend,
            return_lse=True,
            key_padding_mask=key_padding_mask,
            document_ids=document_ids,
        )
        outs.append(out)
        lses.append(lse.detach())
    out, lse = merge(outs, lses)
    # Each branch's output has been rounded to q's dtype; they are mixed in the LSE's.
    out = out.to(outs[0].dtype)
    return (out, lse) if return_lse else out
