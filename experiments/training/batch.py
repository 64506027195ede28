"""What a source of training data is, and the batches it gives."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch

from models.errors import as_integer, check_choice

# Target of a position that is not asked; the default `ignore_index` of torch's cross-entropy.
IGNORED = -100
NO_DISTANCE = -1
SPLITS = ("train", "validation")


class Batch(NamedTuple):
    """B sequences of N tokens, and what is to be said after each.

    inputs: (B, N) int64 token ids.
    targets: (B, N) int64 token ids; IGNORED where no answer is asked.
    distances: (B, N) int64, the tokens from a position back to where its answer stands:
        `inputs[b, t - distances[b, t]] == targets[b, t]`. -1 where nothing is asked or
        the answer stands nowhere in particular, as in text.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    distances: torch.Tensor


class Source(Protocol):
    """Batches by number, of `batch_size` sequences of `seq_len` tokens.

    name: of the text or task. vocab_size: token ids are below it. description: what the
    batches follow from, as JSON, for records.
    """

    name: str
    vocab_size: int
    seq_len: int
    batch_size: int

    @property
    def description(self) -> dict: ...

    def batch(self, split: str, index: int, *, rows: slice | None = None) -> Batch:
        """Batch number `index` (from 0) of `train` or `validation`.

        Args:
            split: one of SPLITS.
            index: the number; any order gives the same batches.
            rows: the rows of it that are wanted, as those of a data-parallel rank; None for all.

        Raises:
            ValueError: of an unknown split, a negative number, rows that are no slice.
        """
        ...


def check_request(split: str, index: int, rows: slice | None) -> tuple[int, slice]:
    """The number and the rows of a request for a batch; ValueError as of `Source.batch`."""
    check_choice("split", split, SPLITS)
    index = as_integer("index", index, least=0)
    if rows is not None and not isinstance(rows, slice):
        raise ValueError(f"rows={rows!r}: expected a slice or None")
    return index, slice(None) if rows is None else rows


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers that are a pure function of these three, independent between any two.

    The same on every machine with the same NumPy; NumPy may change how it draws from
    the bits between releases (NEP 19).
    """
    key = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index))
    return np.random.default_rng(key)
