"""One block mask for every length: built for the longest sequence, cut for a shorter one."""

from __future__ import annotations

import torch

from models.language.config import LongNetConfig
from models.patterns import block_builders, csr
from models.patterns.block_mask import BlockMask

# Lengths differ from call to call; a cut is cheap to make again, and a ring keeps plans of it.
_KEPT = 32


class BlockMasks:
    """The mask of a configuration's pattern, and its upper left parts.

    Builders read the number of blocks, so that a mask built for N tokens may keep other blocks in a
    row than one built for N + 1: a decoder would not be causal in length. So there is one mask,
    for `max_seq_len`, of which a shorter sequence has the first rows and columns.

    Args:
        config: with a pattern of a builder.
        is_causal: whether only blocks up to the diagonal are kept.
    """

    def __init__(self, config: LongNetConfig, is_causal: bool):
        builder = getattr(block_builders, config.pattern)
        options = {"sparsity": config.sparsity, "block_size": config.block_size}
        if config.pattern == "random":
            options |= {"seed": config.pattern_seed, "heads": config.heads}
        self.longest = builder(config.max_seq_len, is_causal=is_causal, **options)
        self._cuts: dict[tuple[int, torch.device], BlockMask] = {}

    def of(self, seq_len: int, device: torch.device) -> BlockMask:
        """The mask of a sequence; cached.

        Args:
            seq_len: tokens, up to `max_seq_len`.
            device: where the lists are wanted.

        Returns:
            The first ceil(seq_len / block_size) rows and columns.
        """
        blocks = -(-seq_len // self.longest.block_size)
        key = (blocks, device)
        if key not in self._cuts:
            while len(self._cuts) >= _KEPT:
                self._cuts.pop(next(iter(self._cuts)))
            with torch.inference_mode(False):
                self._cuts[key] = cut(self.longest, blocks).to(device)
        return self._cuts[key]

    def row(self, block: int) -> torch.Tensor:
        """The kept key blocks of one query block.

        Args:
            block: its number.

        Returns:
            (G, kept) int64 on the CPU, G = 1 or H; every row of a builder keeps as many blocks in
            each head.
        """
        starts = self.longest.row_ptr[:, block].tolist()
        ends = self.longest.row_ptr[:, block + 1].tolist()
        lists = [self.longest.col_idx[a:b] for a, b in zip(starts, ends, strict=True)]
        return torch.stack(lists).long()


def cut(mask: BlockMask, blocks: int) -> BlockMask:
    """The upper left part of a mask.

    Args:
        mask: of M blocks.
        blocks: of the part, from 1 to M.

    Returns:
        The mask itself where it is all of it.
    """
    if blocks == mask.blocks:
        return mask
    row = csr.entry_rows(mask.row_ptr, len(mask.col_idx)).long()
    head, row = row // mask.blocks, row % mask.blocks
    kept = (row < blocks) & (mask.col_idx < blocks)
    places = (head * blocks + row)[kept]
    lengths = torch.bincount(places, minlength=mask.heads * blocks).view(mask.heads, blocks)
    return BlockMask(csr.row_pointers(lengths), mask.col_idx[kept], mask.block_size)
