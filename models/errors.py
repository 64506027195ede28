"""The errors that public functions raise, and the checks of arguments that are no tensors."""

from __future__ import annotations

import operator
from collections.abc import Collection
from numbers import Real


class UnsupportedBackend(RuntimeError):
    """The named backend cannot compute this; the message says why."""


class RingError(RuntimeError):
    """A rank of a ring did not answer or ended; the message says which, and where."""


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
