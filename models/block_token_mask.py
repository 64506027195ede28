"""Pairs of tokens within kept blocks that padding and documents mask, for `models.block_gather`."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.block_schedule import Chunk, Piece
from models.block_workspace import GatherSource, Workspace
from models.patterns.block_mask import BlockMask


class TokenMask:
    """What padding and documents mask in one sequence of a batch.

    Args:
        work: of the call.
        mask: of the call.
        key_padding_mask: (N,) bool, True where a key is not attended to, or None.
        document_ids: (N,) integers, or None.

    Attributes:
        is_any: whether anything is masked.
        mask: the given one without blocks that hold no key for any query of their row.
    """

    def __init__(
        self,
        work: Workspace,
        mask: BlockMask,
        key_padding_mask: torch.Tensor | None,
        document_ids: torch.Tensor | None,
    ):
        padding, ids = key_padding_mask, document_ids
        padding = None if padding is None or not padding.any() else padding
        ids = None if ids is None or (ids == ids[0]).all() else ids
        self.work, self.is_any = work, padding is not None or ids is not None
        self.mask = _without_masked_blocks(mask, padding, ids) if self.is_any else mask
        self.padding, self.ids = (
            None if x is None else GatherSource(*work.key_blocks(x[:, None]), None, 1)
            for x in (padding, ids)
        )

    def where(self, chunk: Chunk, piece: Piece) -> torch.Tensor | None:
        """Which pairs are masked.

        Args:
            chunk, piece: which blocks.

        Returns:
            (rows, block_size or 1, n * block_size) bool, overwritten by the next call; None where
            nothing is masked.
        """
        if not self.is_any:
            return None
        options = {"chunk": replace(chunk, head=None), "piece": piece}
        padded = None
        if self.padding is not None:
            padded = self.work.gather("padding", self.padding, **options, dtype=torch.bool)
            padded = padded[:, None]
        if self.ids is None:
            return padded
        whole, rest = self.ids[:2]
        blocks = (whole.movedim(2, 0)[:, :, None], rest.movedim(1, 0)[:, None])
        own = self.work.load("own ids", blocks, options["chunk"], dtype=whole.dtype)
        ids = self.work.gather("ids", self.ids, **options, dtype=whole.dtype)
        others = self.work.buffer("others", *own.shape, ids.shape[1], dtype=torch.bool)
        torch.ne(own[:, :, None], ids[:, None], out=others)
        return others if padded is None else others.logical_or_(padded)

    def fill(self, x: torch.Tensor, where: torch.Tensor | None, value: float) -> None:
        """Set masked pairs to a value.

        Args:
            x: (tiles, stacked * block_size, n * block_size), changed in place.
            where: of `where`.
            value: what to set.
        """
        if where is not None:
            rows, _, keys = where.shape
            x = x.view(-1, rows, self.work.stacked, self.work.block_size, keys)
            x.masked_fill_(where[:, None], value)


def _without_masked_blocks(mask: BlockMask, padding, ids) -> BlockMask:
    """`mask` without blocks whose keys are all padding, or whose range of ids misses the queries'.

    Documents are mostly runs with rising ids: few blocks are kept in vain.
    """
    columns = mask.col_idx.long()
    kept = torch.ones_like(columns, dtype=torch.bool)
    if padding is not None:
        holds_key = ~_by_block(mask, padding, True).all(dim=1)
        kept &= holds_key[columns]
    if ids is not None:
        least, most = _by_block(mask, ids, ids[-1]).aminmax(dim=1)
        rows = mask.entry_rows().long() % mask.blocks
        kept &= (least[columns] <= most[rows]) & (most[columns] >= least[rows])
    return mask.only(kept)


def _by_block(mask: BlockMask, x, filler) -> torch.Tensor:
    """x (N,) as (blocks, block_size), `filler` past the end."""
    short = mask.blocks * mask.block_size - len(x)
    return torch.cat([x, torch.full_like(x[:1], filler).expand(short)]).view(
        mask.blocks, mask.block_size
    )
