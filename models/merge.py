"""Joining partial results by their log-sum-exp.

Parts over disjoint (or repeated) sets of keys, each with its output O_i and
LSE_i, join to `O = sum_i exp(LSE_i - LSE) O_i`, `LSE = log sum_i exp(LSE_i)`.
"""

from __future__ import annotations

import torch


def merge(outs: list[torch.Tensor], lses: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Join parts; differentiable in every argument.

    Args:
        outs: (B, N, H, D) per part.
        lses: (B, H, N) per part, natural log, -inf where it holds no key.

    Returns:
        out (B, N, H, D) and LSE (B, H, N); rows without any key give 0 and -inf.
    """
    lses = torch.stack(lses)
    empty = lses.isneginf().all(dim=0)
    # The shift only guards against overflow, so its gradient is left out.
    shift = lses.detach().amax(dim=0).masked_fill(empty, 0.0)
    weights = (lses - shift).exp()
    total = weights.sum(dim=0).masked_fill(empty, 1.0)
    weights = (weights / total).transpose(2, 3)[..., None]
    out = (weights * torch.stack(outs)).sum(dim=0)
    return out, (shift + total.log()).masked_fill(empty, -torch.inf)


def merge_into(
    out: torch.Tensor, lse: torch.Tensor, part_out: torch.Tensor, part_lse: torch.Tensor
) -> None:
    """Join one part in place; no gradient.

    Rows without a key have 0 and LSE = -inf, in the part, in `out` or in both.

    Args:
        out: (..., D), any strides, written to.
        lse: (...), any strides, natural log, written to.
        part_out: (..., D).
        part_lse: (...).
    """
    limits = torch.finfo(lse.dtype)
    if out.device.type != "cpu":
        # The two weights exp(LSE_i - LSE) add up to one, so that of the part is a sigmoid.
        weight = torch.sigmoid(part_lse - lse.clamp(min=limits.min))
        out.lerp_(part_out.to(out.dtype), weight[..., None])
        lse.copy_(torch.logaddexp(lse, part_lse))
        return
    # PyTorch's sigmoid, lerp and logaddexp round differently in vector code and in the scalar code
    # for the remaining elements: a row's bits would depend on its place in memory, and a sequence
    # in chunks would differ from the same in one piece. Products, sums, exp and log do not.
    # Clamped, so that two rows without keys, both -inf, give the weights 0 and LSE -inf.
    shift = torch.maximum(lse, part_lse).clamp_(min=limits.min)
    own, part = (lse - shift).exp(), (part_lse - shift).exp()
    total = own + part
    lse.copy_(total.log().add_(shift))
    total.clamp_(min=limits.tiny)
    out.mul_((own / total)[..., None]).add_(part_out * (part / total)[..., None])
