"""How much the cards of one kind differ, by cases that were measured on several of them.

A round on many cards has each case on one of them, and the next round on another: a time is that
of its case, of its round and of its card. Where each case was on one card alone, or each round,
nothing tells cards from cases or from rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from analysis.statistics.rounds import At, Logs

# Of a contrast of two cards, of length sqrt(2): what is less than this is nothing.
_NOTHING = 1e-6


class Card(NamedTuple):
    """One card of one host."""

    host: str
    card: str


def several_of_a_host(cases: Iterable[Logs]) -> bool:
    """Whether the cases were measured on two cards of one host."""
    cards = {_card(at) for own in cases for at in own if at.card}
    return len(cards) > len({one.host for one in cards})


def effects_with_cards(
    cases: Sequence[Logs],
) -> tuple[dict[At, float], list[dict[Card, float]]]:
    """By how much all cases take longer in each round on each card, and on each card: logs.

    The additive fit of cases, rounds and cards by least squares. Of the second there is one part
    for each group of cards that can be compared, of two or more, whose mean is 0.
    """
    ats = sorted({at for own in cases for at in own})
    rounds = {at: place for place, at in enumerate(dict.fromkeys(at.anywhere for at in ats))}
    cards = {card: place for place, card in enumerate(dict.fromkeys(map(_card, ats)), len(rounds))}
    size = len(rounds) + len(cards)
    design = {at: np.zeros(size) for at in ats}
    for at, row in design.items():
        row[[rounds[at.anywhere], cards[_card(at)]]] = 1.0
    normal, right = np.zeros((size, size)), np.zeros(size)
    for own in cases:
        rows = np.array([design[at] for at in own])
        rows -= rows.mean(axis=0)
        normal += rows.T @ rows
        right += rows.T @ np.array([*own.values()])
    inverse = np.linalg.pinv(normal, hermitian=True)
    fitted, known = inverse @ right, inverse @ normal
    effects = {at: float(row @ fitted) for at, row in design.items()}
    middle = fmean(effects.values())
    parts: list[list[Card]] = []
    for card in (one for one in cards if one.card):
        own = next((part for part in parts if _is_told(known, cards[part[0]], cards[card])), None)
        if own is None:
            parts.append([card])
        else:
            own.append(card)
    told = [{card: float(fitted[cards[card]]) for card in part} for part in parts if len(part) > 1]
    return (
        {at: value - middle for at, value in effects.items()},
        [{card: value - fmean(part.values()) for card, value in part.items()} for part in told],
    )


def variance_between(parts: Sequence[Mapping[Card, float]]) -> tuple[float, int]:
    """The variance between cards and its degrees of freedom; of none, 0 and 0."""
    freedom = sum(len(part) - 1 for part in parts)
    squares = sum(value**2 for part in parts for value in part.values())
    return (squares / freedom, freedom) if freedom else (0.0, 0)


def _card(at: At) -> Card:
    return Card(at.host, at.card)


def _is_told(known: np.ndarray, a: int, b: int) -> bool:
    """Whether the difference of two is what the cases say: it lies in what `known` projects on."""
    contrast = np.zeros(len(known))
    contrast[a], contrast[b] = 1.0, -1.0
    return bool(np.abs(known @ contrast - contrast).max() < _NOTHING)
