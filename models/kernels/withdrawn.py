"""Kernels that gave wrong results on the machine at hand: backend "auto" does not choose them."""

from __future__ import annotations

_REASONS: dict[tuple[str, str, int], str] = {}


def padded(head_dim: int) -> int:
    """The head dimension as kernels tile it: a power of two, 32 at least."""
    return max(32, 1 << (head_dim - 1).bit_length())


def _key(table: str, dtype: str, head_dim: int) -> tuple[str, str, int]:
    return table, dtype.removeprefix("torch."), padded(head_dim)


def withdraw(table: str, dtype: str, head_dim: int, reason: str) -> None:
    """From now on "auto" does not choose these kernels, here and in processes forked later.

    Args:
        table: whose: "dilated", "block_sparse" or "hop".
        dtype: of the inputs, "float16" or "torch.float16".
        head_dim: of the inputs; all that are padded to the same power of two.
        reason: why, for `why_withdrawn`.
    """
    _REASONS[_key(table, dtype, head_dim)] = reason


def restore() -> None:
    """Forget every withdrawal."""
    _REASONS.clear()


def why_withdrawn(table: str, dtype: str, head_dim: int) -> str | None:
    """The reason given for these kernels, or None where they are not withdrawn."""
    return _REASONS.get(_key(table, dtype, head_dim))
