"""Which variants a language model can attend by."""

from __future__ import annotations

from models.errors import check_choice
from models.registry import VARIANTS, Variant


def serving_variant(name: str) -> Variant:
    """The variant of that name.

    Args:
        name: one of `models.registry.VARIANTS`.

    Returns:
        Its entry.

    Raises:
        ValueError: where there is none, or it cannot be trained and generated with; says why.
    """
    check_choice("attention", name, VARIANTS)
    variant = VARIANTS[name]
    if reason := why_not(variant):
        able = ", ".join(other for other, one in VARIANTS.items() if why_not(one) is None)
        raise ValueError(f"attention={name!r}: {reason}; expected one of {able}")
    return variant


def why_not(variant: Variant) -> str | None:
    """Why a language model cannot attend by a variant.

    Args:
        variant: of the registry.

    Returns:
        The reason, None if it can.
    """
    if variant.is_streamed:
        return "it reads q, k, v chunk by chunk from a source and has no gradient"
    if variant.replica_of is not None:
        return f"it computes what published code computed; that of its name is {variant.replica_of}"
    if variant.is_peer:
        return "it is another package's ring, measured as it is"
    if variant.multihead:
        return "it has projections of its own; name the attention inside it"
    return None
