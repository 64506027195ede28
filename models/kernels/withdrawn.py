"""Kernels that were seen to be wrong on the machine at hand: backend "auto" passes them over."""

from __future__ import annotations

_REASONS: dict[tuple[str, str, int], str] = {}


def padded(head_dim: int) -> int:
    """The head dimension as kernels tile it: a power of two, 32 at least."""
    return max(32, 1 << (head_dim - 1).bit_length())


def _key(table: str, dtype: str, head_dim: int) -> tuple[str, str, int]:
    return table, dtype.removeprefix("torch."), padded(head_dim)


def withdraw(table: str, dtype: str, head_dim: int, reason: str) -> None:
    """From now on "auto" is not the kernels of `table` ("dilated", ...) at that type and size.

    dtype: "float16" or "torch.float16". Processes forked from this one know it too.
    """
    _REASONS[_key(table, dtype, head_dim)] = reason


def restore() -> None:
    """Take back all that was withdrawn."""
    _REASONS.clear()


def why_withdrawn(table: str, dtype: str, head_dim: int) -> str | None:
    """The reason given, or None."""
    return _REASONS.get(_key(table, dtype, head_dim))
