"""The checks of q, k and v."""

from __future__ import annotations

import torch

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_qkv(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, may_lack_tokens: bool = False
) -> None:
    """Check the shapes, dtypes and devices of q, k, v.

    Args:
        q: (B, N, H, D), float64, float32, float16 or bfloat16; B = 0 is allowed.
        k, v: (B, M, Hkv, D) of q's dtype and device, Hkv a divisor of H.
        may_lack_tokens: allow N = 0 and M = 0.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"{name}={got}: expected a tensor (batch, tokens, heads, head_dim)")
        if x.dtype not in DTYPES:
            raise ValueError(f"{name}.dtype={x.dtype}: expected float64, 32, 16 or bfloat16")
        if 0 in x.shape[2:] or (x.shape[1] == 0 and not may_lack_tokens):
            raise ValueError(
                f"{name}.shape={tuple(x.shape)}: expected no empty dimension but the batch"
            )
        if (x.dtype, x.device) != (q.dtype, q.device):
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}: expected {q.dtype} on {q.device}, as q is"
            )
    if k.shape != v.shape:
        raise ValueError(f"v.shape={tuple(v.shape)}: expected k's shape {tuple(k.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"k.shape={tuple(k.shape)}: expected batch {q.shape[0]} and head_dim "
            f"{q.shape[3]}, as in q"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"k.shape={tuple(k.shape)}: expected a number of heads that divides q's {q.shape[2]}"
        )


def check_same_length(q: torch.Tensor, k: torch.Tensor) -> None:
    """Check that there are as many keys as queries.

    Args:
        q: (B, N, H, D).
        k: (B, N, Hkv, D).

    Raises:
        ValueError: where there are not.
    """
    if q.shape[1] != k.shape[1]:
        raise ValueError(
            f"k.shape={tuple(k.shape)}: expected {q.shape[1]} tokens, as in q (self-attention)"
        )
