"""The cards of a machine in words: which, and how far apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.rendering.text import number
from analysis.statistics.cards import Card


def short_name(card: str) -> str:
    """Of a card its UUID's first digits, of several those of each."""
    return " ".join(one.removeprefix("GPU-")[:8] for one in card.split("+"))


def apart(cards: Sequence[tuple[Card, float]]) -> str:
    """How much longer all cases take on the slowest of (card, log) pairs than on the fastest."""
    values = [value for _, value in cards]
    return f"{number(100 * math.expm1(max(values) - min(values)))} % apart"
