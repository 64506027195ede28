"""Batches padded on either side, and packed ones, whose sequences do not attend to each other.

Positions are counted from the first token of a row that is no padding, so that a pattern does not
depend on how much padding the other sequences of the batch need: a sequence attends as it would
alone. So does a packed one in dilated attention; blocks of a mask are counted from the row's start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F


class Rows:
    """The sequences of a batch."""

    def attend(
        self, function: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attention of each sequence to itself; differentiable where `function` is.

        Args:
            function: (q, k, v) -> out of sequences without padding, of which q has the last tokens
                alone where it is shorter; for q as long as k also with `key_padding_mask` or
                `document_ids`, as of `models.dilated_attention`.
            q: (B, n, H, D), the last n tokens.
            k, v: (B, N, Hkv, D).

        Returns:
            out (B, n, H, D), finite; of padding it means nothing.
        """
        raise NotImplementedError


class WholeRows(Rows):
    """One sequence in a row, without padding."""

    def attend(
        self, function: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        return function(q, k, v)


@dataclass(frozen=True)
class PackedRows(Rows):
    """Several sequences one after the other in a row, and all their tokens in q.

    Attributes:
        document_ids: (B, N) integers, the sequence that each token is of.
    """

    document_ids: torch.Tensor

    def attend(
        self, function: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        return function(q, k, v, document_ids=self.document_ids.to(q.device))


@dataclass(frozen=True)
class PaddedRows(Rows):
    """One sequence in a row, with padding before it, after it or on both sides.

    Attributes:
        runs: of each row, its first token and the end of its last; both 0 where there is none.
        padded: (B, N) bool, True where there is no token.
    """

    runs: tuple[tuple[int, int], ...]
    padded: torch.Tensor

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> PaddedRows:
        """The rows of a mask; waits for the device that it is on.

        Args:
            attention_mask: (B, N) bool, True where there is a token.

        Returns:
            The rows.

        Raises:
            ValueError: where there is padding between the tokens of a row.
        """
        n = attention_mask.shape[1]
        found = attention_mask.to(torch.uint8)
        starts, tokens = found.argmax(dim=1), found.sum(dim=1)
        ends = torch.where(tokens > 0, n - found.flip(1).argmax(dim=1), 0)
        has_hole = ends - starts != tokens
        starts, ends, has_hole = torch.stack([starts, ends, has_hole.long()]).tolist()
        if any(has_hole):
            row = has_hole.index(1)
            raise ValueError(
                f"attention_mask: expected padding before or after the tokens of a row, and row "
                f"{row} has it between its tokens {starts[row]} and {ends[row] - 1}; pad on the "
                "left to generate"
            )
        return cls(tuple(zip(starts, ends, strict=True)), ~attention_mask)

    def attend(
        self, function: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        # Neighbouring rows of one run go together, and all do where all start at 0.
        n, offset = q.shape[1], k.shape[1] - q.shape[1]
        if offset == 0 and all(start == 0 for start, _ in self.runs):
            return function(q, k, v, key_padding_mask=self.padded.to(q.device))
        outs, row = [], 0
        for (start, end), alike in groupby(self.runs):
            rows = slice(row, row + len(list(alike)))
            row = rows.stop
            first, last = max(start - offset, 0), max(end - offset, 0)
            own, keys = q[rows, first:last], slice(start, end)
            # Without queries: a row of padding, or tokens that all came before these.
            out = function(own, k[rows, keys], v[rows, keys]) if first < last else own
            outs.append(F.pad(out, (0, 0, 0, 0, first, n - max(first, last))))
        return torch.cat(outs)
