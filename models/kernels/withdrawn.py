"""Kernels that this process has seen to be wrong: "auto" passes them over, by name they raise."""

from __future__ import annotations

_REASONS: dict[tuple[str, str, int], str] = {}


def _key(table: str, dtype: str, head_dim: int) -> tuple[str, str, int]:
    # Head dimensions share a kernel's form with the power of two that they are padded to.
    return table, dtype.removeprefix("torch."), max(32, 1 << (head_dim - 1).bit_length())


def withdraw(table: str, dtype: str, head_dim: int, reason: str) -> None:
    """From now on no backend uses the kernels of `table` ("dilated", ...) at that type and size.

    dtype: "float16" or "torch.float16". Processes forked from this one know it too.
    """
    _REASONS[_key(table, dtype, head_dim)] = reason


def restore() -> None:
    """Take back all that was withdrawn."""
    _REASONS.clear()


def why_withdrawn(table: str, dtype: str, head_dim: int) -> str | None:
    """The reason given, or None."""
    return _REASONS.get(_key(table, dtype, head_dim))
