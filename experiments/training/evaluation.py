"""How well a model predicts the validation batches: in all, by position and by distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from experiments.training.batch import IGNORED
from experiments.training.micro_batches import micro_batches
from experiments.training.parallel import Place


@dataclass(frozen=True)
class Bin:
    """The asked tokens of one range of positions or distances.

    Args:
        first, last: the range; the last is twice the first, less one.
        tokens: how many are asked.
        loss: bits per asked token.
        accuracy: the share of them for which the likeliest token is the right one.
    """

    first: int
    last: int
    tokens: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of the validation batches after a step.

    Args:
        step: after which.
        tokens: how many are asked.
        loss: bits per asked token.
        accuracy: the share of them for which the likeliest token is the right one.
        by_position: the same by the place in the row, from 1; ranges without a token are left out.
        by_distance: the same by the tokens back to where the answer stands; what has no distance
            is in none.
    """

    step: int
    tokens: int
    loss: float
    accuracy: float
    by_position: tuple[Bin, ...]
    by_distance: tuple[Bin, ...]


@torch.no_grad()
def evaluate(
    forward: Callable[[torch.Tensor], torch.Tensor],
    source,
    *,
    step: int,
    batches: int,
    place: Place,
    rows: int | None,
    device: torch.device,
) -> Evaluation:
    """Evaluate on the first validation batches, the same ones each time.

    Args:
        forward: tokens (B, n) to logits (B, n, V).
        source: of batches.
        step: steps done, for the result.
        batches: how many are taken.
        place: of this process; the result is that of all processes.
        rows: that are computed at a time; None for all.
        device: where.

    Returns:
        The evaluation, the same in all processes.

    Raises:
        ValueError: where no token is asked.
    """
    # A row of a table for each range from 2**k to 2**(k + 1) - 1; what is in none is in row 0.
    edges = 2 ** torch.arange(62, device=device)
    tables = torch.zeros(2, 63, 3, dtype=torch.float64, device=device)
    for index in range(batches):
        for part in micro_batches(
            source, "validation", index, place=place, rows=rows, device=device
        ):
            logits, targets = forward(part.inputs).float().flatten(0, 1), part.targets.flatten()
            asked = targets != IGNORED
            losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
            found = torch.stack((asked, losses, logits.argmax(-1) == targets), dim=-1).double()
            positions = (part.positions + 1).expand_as(part.targets)
            for table, of in zip(tables, (positions, part.distances), strict=True):
                in_range = torch.bucketize(of.flatten(), edges, right=True)
                table.index_add_(0, in_range.where(asked, 0), found)
    by_position, by_distance = place.add_up(tables).cpu()
    whole = _bin(0, by_position.sum(0).tolist())
    if whole is None:
        raise ValueError(f"source={source.name!r}: its validation batches ask for no token")
    return Evaluation(
        step, whole.tokens, whole.loss, whole.accuracy, _bins(by_position), _bins(by_distance)
    )


def _bins(table: torch.Tensor) -> tuple[Bin, ...]:
    found = (_bin(2**k, row) for k, row in enumerate(table[1:].tolist()))
    return tuple(one for one in found if one is not None)


def _bin(first: int, sums: list[float]) -> Bin | None:
    """The range that begins with `first`, of its sums of tokens, nats and right guesses."""
    tokens, nats, right = sums
    if not tokens:
        return None
    bits = nats / math.log(2) / tokens
    return Bin(first, max(0, 2 * first - 1), round(tokens), bits, right / tokens)
