"""The errors that public functions raise, and the checks of their arguments."""

from __future__ import annotations

import operator
from collections.abc import Collection
from numbers import Real

import torch

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class UnsupportedBackend(RuntimeError):
    """The named backend cannot compute this; the message says why."""


class RingError(RuntimeError):
    """A rank of a ring did not answer or ended; the message says which, and where."""


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


def resolve_scale(scale: float | None, head_dim: int) -> float:
    """The factor on q.k.

    Args:
        scale: None for 1/sqrt(head_dim).
        head_dim: D.

    Returns:
        The factor.

    Raises:
        ValueError: where it is no positive number below 1e30.
    """
    if scale is None:
        return head_dim**-0.5
    return as_number("scale", scale, 1e30, "a positive number or None")


def as_number(name: str, value: object, below: float, expected: str) -> float:
    """An argument as a float.

    Args:
        name: of the argument, for the message.
        value: any kind of number, NumPy's too.
        below: the bound.
        expected: what is expected, for the message.

    Returns:
        The number.

    Raises:
        ValueError: unless 0 < value < below.
    """
    if isinstance(value, Real) and type(value) is not bool and 0 < float(value) < below:
        return float(value)
    raise ValueError(f"{name}={value!r}: expected {expected}")


def as_integer(name: str, value: object, *, least: int = 1) -> int:
    """An argument as an int.

    Args:
        name: of the argument, for the message.
        value: any kind of integer, NumPy's too, but no bool.
        least: the bound.

    Returns:
        The integer.

    Raises:
        ValueError: unless value >= least.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name}={value!r}: expected an integer >= {least}")
    return number


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Check that an argument is one of a few names.

    Args:
        name: of the argument, for the message.
        value: anything.
        choices: the names.

    Raises:
        ValueError: where it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")
