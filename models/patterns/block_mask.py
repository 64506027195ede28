"""Who attends to whom, block by block: CSR lists of key blocks for every query block.

The sequence is cut into M blocks of `block_size` tokens, the last one possibly shorter. No step
here makes an M x M table but `from_dense` and `to_dense`, whose purpose it is. The steps on plain
lists are in `models.patterns.csr`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from models.errors import as_integer
from models.flex_lists import BlockLists, flex_mask, padded_lists
from models.patterns import block_pairs, block_picture, csr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.nn.attention.flex_attention import BlockMask as FlexBlockMask

# Living masks by the memory that their row_ptr is in, for `BlockMask.of`.
_alive: weakref.WeakValueDictionary[int, BlockMask] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class BlockMask:
    """Which key blocks each query block attends to, for G = 1 (shared by all heads) or G = H heads.

    A mask is a pattern for `models.oracle`: it has `counts` and `pairs`. Make masks outside of
    what torch.compile compiles and pass them in: inside, the lengths of lists are unknown.

    Args:
        row_ptr: (G, M + 1) int64, offsets into the flat `col_idx`: row i of list g holds
            `col_idx[row_ptr[g, i] : row_ptr[g, i + 1]]`, lists one after the other without gaps.
        col_idx: (nnz,) int32, key block numbers, ascending within a row.
        block_size: tokens per block.

    Raises:
        ValueError: where the lists break these rules.
        RuntimeError: inside torch.compile.
    """

    row_ptr: torch.Tensor
    col_idx: torch.Tensor
    block_size: int
    # Blocks are counted from the sequence's start, not from each document's.
    restarts_per_document: ClassVar[bool] = False

    def __post_init__(self):
        if torch.compiler.is_compiling():
            raise RuntimeError("BlockMask: make it outside of torch.compile and pass it in")
        object.__setattr__(self, "block_size", as_integer("block_size", self.block_size))
        csr.check_types(self.row_ptr, self.col_idx)
        for name in ("row_ptr", "col_idx"):
            object.__setattr__(self, name, getattr(self, name).contiguous())  # as kernels read them
        csr.check_values(self.row_ptr, self.col_idx)
        _alive[self.row_ptr.data_ptr()] = self

    @classmethod
    def of(cls, row_ptr: torch.Tensor, col_idx: torch.Tensor, block_size: int) -> BlockMask:
        """The mask with these very lists, with all that it has cached, if it is alive.

        Args:
            row_ptr, col_idx, block_size: as of the class; not checked.

        Returns:
            The living mask whose lists are in this memory, else a new one.
        """
        mask = _alive.get(row_ptr.data_ptr())
        if mask is not None and mask.block_size == block_size:
            own = ((mask.row_ptr, row_ptr), (mask.col_idx, col_idx))
            if all(_is_same_memory(*pair) for pair in own):
                return mask
        mask = object.__new__(cls)
        for name, x in (("row_ptr", row_ptr), ("col_idx", col_idx), ("block_size", block_size)):
            object.__setattr__(mask, name, x)
        return mask

    @classmethod
    def from_dense(cls, dense: torch.Tensor, block_size: int) -> BlockMask:
        """The mask of a dense table.

        Args:
            dense: (1 or H, M, M) bool, [head, query block, key block].
            block_size: tokens per block.

        Returns:
            The mask, on `dense`'s device.

        Raises:
            ValueError: where `dense` is no such tensor or `block_size` no integer >= 1.
        """
        square = isinstance(dense, torch.Tensor) and dense.dim() == 3
        if not square or dense.shape[1] != dense.shape[2] or dense.dtype != torch.bool:
            got = (dense.dtype, tuple(dense.shape)) if isinstance(dense, torch.Tensor) else dense
            raise ValueError(f"dense={got}: expected a bool tensor (heads, M, M)")
        col_idx = dense.nonzero()[:, 2].to(torch.int32)
        return cls(csr.row_pointers(dense.sum(dim=2)), col_idx, block_size)

    def to_dense(self) -> torch.Tensor:
        """(G, M, M) bool, [head, query block, key block]; M x M bytes per head."""
        dense = torch.zeros(self.row_ptr[:, 1:].numel(), self.blocks, dtype=torch.bool)
        dense = dense.to(self.device)
        dense[self.entry_rows().long(), self.col_idx.long()] = True
        return dense.view(-1, self.blocks, self.blocks)

    @property
    def blocks(self) -> int:
        """M, the number of query blocks and of key blocks."""
        return self.row_ptr.shape[1] - 1

    @property
    def heads(self) -> int:
        """G, the number of lists: 1 where all heads share them."""
        return self.row_ptr.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the lists."""
        return self.row_ptr.device

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask on another device.

        Args:
            device: which.

        Returns:
            The mask itself where it is there already.
        """
        if torch.device(device) == self.device:
            return self
        return BlockMask(self.row_ptr.to(device), self.col_idx.to(device), self.block_size)

    def check_fits(self, seq_len: int, heads: int) -> None:
        """Check that the mask is for such queries.

        Args:
            seq_len: tokens.
            heads: query heads.

        Raises:
            ValueError: unless the mask covers `seq_len` tokens and has 1 or `heads` lists.
        """
        if self.blocks != -(-seq_len // self.block_size):
            raise ValueError(
                f"mask has {self.blocks} blocks of {self.block_size} tokens: "
                f"expected {-(-seq_len // self.block_size)} blocks for {seq_len} tokens"
            )
        if self.heads not in (1, heads):
            raise ValueError(f"mask has lists of {self.heads} heads: expected 1 or {heads}")

    def density(self, is_causal: bool = False) -> float:
        """Kept blocks over allowed blocks.

        Args:
            is_causal: count only blocks up to the diagonal.

        Returns:
            From 0 to 1.
        """
        allowed = self.blocks * (self.blocks + 1) // 2 if is_causal else self.blocks**2
        return len((self.causal() if is_causal else self).col_idx) / (self.heads * allowed)

    def pairs(self, seq_len: int, heads: int, is_causal: bool) -> int:
        """Query-key pairs of tokens, over all heads.

        Args:
            seq_len: tokens.
            heads: query heads.
            is_causal: count only pairs up to the diagonal.

        Returns:
            Their number.

        Raises:
            ValueError: as of `check_fits`.
        """
        self.check_fits(seq_len, heads)
        mask = self.causal() if is_causal else self
        size, last = self.block_size, self.blocks - 1
        short = self.blocks * size - seq_len
        queries = torch.full((self.blocks,), size, device=self.device)
        queries[-1] -= short
        ends = mask.last_blocks()
        total = queries * (mask.lengths() * size - short * (ends == last))
        if is_causal:
            diagonal = ends == torch.arange(self.blocks, device=self.device)
            total -= diagonal * (queries * (queries - 1) // 2)
        return int(total.sum()) * (heads // self.heads)

    def counts(self, head: int, heads: int, rows: torch.Tensor, n_keys: int) -> torch.Tensor:
        """C[i, j], 1 where query row i of `head` attends to key j; causality is not applied.

        Args:
            head: query head.
            heads: query heads, H.
            rows: (R,) int64, positions of the queries.
            n_keys: tokens, N.

        Returns:
            (R, N) int64.

        Raises:
            ValueError: as of `check_fits`.
        """
        self.check_fits(n_keys, heads)
        ptr = self._head_pointers(head)
        block = rows // self.block_size
        lengths = ptr[block + 1] - ptr[block]
        row = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        place = torch.arange(len(row), device=rows.device) - (lengths.cumsum(0) - lengths)[row]
        kept = torch.zeros(len(rows), self.blocks, dtype=torch.int64, device=rows.device)
        kept[row, self.col_idx[ptr[block][row] + place].long()] = 1
        return kept.repeat_interleave(self.block_size, dim=1)[:, :n_keys]

    def lengths(self) -> torch.Tensor:
        """(G, M) int64: the number of key blocks in each row."""
        return self.row_ptr.diff(dim=1)

    def last_blocks(self) -> torch.Tensor:
        """(G, M) int64: the last key block of each row, -1 for empty rows."""
        return csr.last_columns(self.row_ptr, self.col_idx)

    def longest_first(self) -> torch.Tensor:
        """(G, M) int32: row numbers by falling length, ties by row number; cached."""
        with torch.inference_mode(False):  # a later call may save it for backward
            return self._longest_first

    @cached_property
    def plans(self) -> dict[tuple, Any]:
        """What backends have derived from the lists alone, kept for as long as the mask is."""
        return {}

    def only(self, kept: torch.Tensor) -> BlockMask:
        """The mask with some of its entries.

        Args:
            kept: (nnz,) bool, True for those.

        Returns:
            A new mask, whose lists are not checked.
        """
        # Rows are sorted, and stay so; `before` counts kept entries.
        before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        return BlockMask.of(before[self.row_ptr], self.col_idx[kept], self.block_size)

    def entry_rows(self) -> torch.Tensor:
        """(nnz,) int32: the row of each entry, numbered on from head to head."""
        return csr.entry_rows(self.row_ptr, len(self.col_idx))

    def neighbours(self, is_causal: bool) -> block_pairs.PairedLists | None:
        """Lists of two neighbouring query blocks together, where that saves loads; cached.

        Args:
            is_causal: whether blocks on the diagonal are cut.

        Returns:
            As `models.patterns.block_pairs.neighbours`.
        """
        if is_causal not in self._neighbours:
            with torch.inference_mode(False):
                lists = block_pairs.neighbours(self.row_ptr, self.col_idx, is_causal)
            self._neighbours[is_causal] = lists
        return self._neighbours[is_causal]

    @cached_property
    def pairs_heads(self) -> bool:
        """Whether heads 2i and 2i + 1 have the same lists, for all i; cached."""
        return self.heads == 1 or block_pairs.heads_alike(self.row_ptr, self.col_idx)

    def causal(self) -> BlockMask:
        """The mask without the blocks above the diagonal, itself where it has none; cached."""
        with torch.inference_mode(False):
            return self._causal or self

    def transpose(self) -> BlockMask:
        """The query blocks of each key block, as the backward pass reads them; cached."""
        with torch.inference_mode(False):  # a later call may save it for backward
            return self._transpose

    def split(self, factor: int, seq_len: int) -> BlockMask:
        """The same pairs of tokens in smaller blocks; cached.

        Args:
            factor: small blocks per block, a divisor of block_size.
            seq_len: tokens that the mask covers.

        Returns:
            A mask of blocks of block_size / factor tokens.

        Raises:
            ValueError: where `factor` does not divide, or as of `check_fits`.
        """
        factor, seq_len = as_integer("factor", factor), as_integer("seq_len", seq_len)
        if self.block_size % factor:
            raise ValueError(f"factor={factor}: expected a divisor of {self.block_size}")
        self.check_fits(seq_len, self.heads)
        if (factor, seq_len) not in self._splits:
            size = self.block_size // factor
            with torch.inference_mode(False):
                lists = csr.split(self.row_ptr, self.col_idx, factor, -(-seq_len // size))
                self._splits[factor, seq_len] = BlockMask(*lists, size)
        return self._splits[factor, seq_len]

    def union(self, other: BlockMask) -> BlockMask:
        """The blocks kept by either mask; also `|`.

        Args:
            other: a mask of as many blocks, of the same size, on the same device.

        Returns:
            A new mask, with lists per head where either has them.

        Raises:
            ValueError: where `other` is no such mask, or lists of both are of other heads.
        """
        return self._from_keys(torch.cat(self._both_keys(other)).unique(), other)

    def intersection(self, other: BlockMask) -> BlockMask:
        """The blocks kept by both masks; also `&`.

        Args:
            other: as of `union`.

        Returns:
            As `union`.

        Raises:
            ValueError: as of `union`.
        """
        keys = torch.cat(self._both_keys(other)).sort().values
        return self._from_keys(keys[1:][keys[1:] == keys[:-1]], other)

    __or__ = union
    __and__ = intersection

    def padded_lists(self, seq_len: int, is_causal: bool) -> tuple[BlockLists, BlockLists]:
        """The lists as FlexAttention and FlashAttention-4 take them; cached.

        Args:
            seq_len: tokens that the mask covers.
            is_causal: leave out what is above the diagonal.

        Returns:
            By query block and by key block, as `models.flex_lists.padded_lists`.

        Raises:
            ValueError: as of `check_fits`.
        """
        self.check_fits(seq_len, self.heads)
        key = ("padded_lists", seq_len, is_causal)
        if key not in self.plans:
            mask = self.causal() if is_causal else self
            columns = mask.transpose()
            lists = ((mask.row_ptr, mask.col_idx), (columns.row_ptr, columns.col_idx))
            is_short = seq_len % self.block_size != 0
            self.plans[key] = padded_lists(*lists, is_causal=is_causal, is_short=is_short)
        return self.plans[key]

    def to_flex(self, seq_len: int, is_causal: bool = False) -> FlexBlockMask:
        """PyTorch's BlockMask, for a compiled `flex_attention`; cached.

        Its partial blocks are the diagonal, when causal, and a short last block. PyTorch's
        `from_kv_blocks` finds the query blocks of each key block through M x M tables; here they
        come from `transpose`.

        Args:
            seq_len: tokens that the mask covers.
            is_causal: cut at the diagonal.

        Returns:
            In the memory of `padded_lists`.

        Raises:
            ValueError: as of `check_fits`.
        """
        lists = self.padded_lists(seq_len, is_causal)
        key = ("to_flex", seq_len, is_causal)
        if key not in self.plans:
            self.plans[key] = flex_mask(*lists, seq_len, self.block_size, is_causal)
        return self.plans[key]

    def draw(self, ax: Axes, head: int = 0) -> None:
        """Draw the mask, by density where M is large.

        Args:
            ax: matplotlib axes.
            head: whose lists.
        """
        block_picture.draw(self._head_pointers(head), self.col_idx, ax)

    def _head_pointers(self, head: int) -> torch.Tensor:
        """(M + 1,) int64, offsets of the lists of `head`."""
        return self.row_ptr[head if self.heads > 1 else 0]

    @cached_property
    def _splits(self) -> dict[tuple[int, int], BlockMask]:
        return {}

    @cached_property
    def _neighbours(self) -> dict[bool, block_pairs.PairedLists | None]:
        return {}

    @cached_property
    def _longest_first(self) -> torch.Tensor:
        return self.lengths().argsort(dim=1, descending=True, stable=True).to(torch.int32)

    @cached_property
    def _causal(self) -> BlockMask | None:
        """None where it is the mask itself, which must not hold itself alive."""
        kept = self.col_idx <= self.entry_rows() % self.blocks
        return None if kept.all() else self.only(kept)

    @cached_property
    def _transpose(self) -> BlockMask:
        return BlockMask(*csr.transposed(self.row_ptr, self.col_idx), self.block_size)

    def _both_keys(self, other: BlockMask) -> list[torch.Tensor]:
        """The entries of each mask, as `csr.entry_keys`."""
        if not isinstance(other, BlockMask) or (other.blocks, other.block_size, other.device) != (
            self.blocks,
            self.block_size,
            self.device,
        ):
            raise ValueError(
                f"other={other!r}: expected a BlockMask of {self.blocks} blocks of "
                f"{self.block_size} tokens on {self.device}"
            )
        heads = max(self.heads, other.heads)
        for mask in (self, other):
            if mask.heads not in (1, heads):
                raise ValueError(f"mask has lists of {mask.heads} heads: expected 1 or {heads}")
        return [csr.entry_keys(mask.row_ptr, mask.col_idx, heads) for mask in (self, other)]

    def _from_keys(self, keys: torch.Tensor, other: BlockMask) -> BlockMask:
        lists = csr.lists_of_keys(keys, max(self.heads, other.heads), self.blocks)
        return BlockMask(*lists, self.block_size)


def _is_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    where = ((x.data_ptr(), x.shape, x.stride(), x.dtype, x.device) for x in (a, b))
    return next(where) == next(where)
