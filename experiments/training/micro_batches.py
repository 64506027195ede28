"""This process's part of a batch, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from experiments.training.parallel import Place


class MicroBatch(NamedTuple):
    """Some rows of a batch, of these the tokens that this process has.

    Args:
        inputs: (rows, n) int64.
        targets: (rows, n) int64, IGNORED where no answer is asked.
        distances: (rows, n) int64, tokens back to where the answer stands, or -1.
        positions: (n,) int64, of the tokens in their rows, from 0.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    distances: torch.Tensor
    positions: torch.Tensor


def micro_batches(
    source, split: str, index: int, *, place: Place, rows: int | None, device: torch.device
) -> Iterator[MicroBatch]:
    """The part of a batch that a process computes.

    Args:
        source: of batches, a pure function of split and index.
        split: "train" or "validation".
        index: of the batch, from 0.
        place: of this process.
        rows: at a time; None for all.
        device: where they go.

    Yields:
        Its rows in their order.

    Raises:
        ValueError: where its rows are no multiple of `rows`.
    """
    batch = source.batch(split, index, rows=place.rows)
    count, seq_len = batch.inputs.shape
    rows = count if rows is None else rows
    if count % rows:
        raise ValueError(f"micro_batch={rows}: expected a divisor of a process's {count} rows")
    positions = place.positions(seq_len).to(device)
    held = [place.tokens(part) for part in batch]
    for first in range(0, count, rows):
        parts = (part[first : first + rows].to(device) for part in held)
        yield MicroBatch(*parts, positions)
