"""Who attends to whom, block by block: CSR lists of key blocks for every query block.

The sequence is cut into M blocks of `block_size` tokens, the last one possibly shorter.
No step here makes an M x M table but `from_dense` and `to_dense`, whose purpose it is.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from models.errors import as_integer

# Living masks by the memory that their row_ptr is in, for `BlockMask.of`.
_alive: weakref.WeakValueDictionary[int, BlockMask] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class BlockMask:
    """Which key blocks each query block attends to, for G = 1 (all heads alike) or G = H heads.

    row_ptr: (G, M + 1) int64, offsets into the flat `col_idx`: row i of list g holds
    `col_idx[row_ptr[g, i] : row_ptr[g, i + 1]]`. Lists follow each other without gaps.
    col_idx: (nnz,) int32 numbers of key blocks, ascending within a row.
    block_size: tokens in a block.

    A mask is a pattern for `models.oracle`: it has `counts` and `pairs`.
    Raises ValueError where the lists break these rules. Make masks outside of what torch.compile
    compiles, and hand them in: how long lists are is not known there.
    """

    row_ptr: torch.Tensor
    col_idx: torch.Tensor
    block_size: int
    # Blocks are counted from the sequence's start, not from each document's.
    starts_anew: ClassVar[bool] = False

    def __post_init__(self):
        if torch.compiler.is_compiling():
            raise RuntimeError("BlockMask: make it outside of torch.compile, and hand it in")
        object.__setattr__(self, "block_size", as_integer("block_size", self.block_size))
        for name, dtype, dims in (("row_ptr", torch.int64, 2), ("col_idx", torch.int32, 1)):
            x = getattr(self, name)
            if not isinstance(x, torch.Tensor) or x.dtype != dtype or x.dim() != dims:
                got = (x.dtype, tuple(x.shape)) if isinstance(x, torch.Tensor) else type(x)
                raise ValueError(f"{name}={got}: expected a tensor of {dtype} with {dims} dims")
            object.__setattr__(self, name, x.contiguous())  # kernels read them as packed
        if self.row_ptr.device != self.col_idx.device:
            raise ValueError(
                f"col_idx is on {self.col_idx.device}: expected {self.row_ptr.device}, as row_ptr"
            )
        if self.row_ptr.shape[0] < 1 or self.row_ptr.shape[1] < 2:
            raise ValueError(f"row_ptr={tuple(self.row_ptr.shape)}: expected (G, M + 1), no empty")
        self._check_lists()
        _alive[self.row_ptr.data_ptr()] = self

    @classmethod
    def of(cls, row_ptr: torch.Tensor, col_idx: torch.Tensor, block_size: int) -> BlockMask:
        """The mask with these very lists, with all that it has computed once, if it is alive.

        Else a new one, whose lists are not checked.
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

    def _check_lists(self) -> None:
        ptr, nnz = self.row_ptr, len(self.col_idx)
        joined = (ptr[1:, 0] == ptr[:-1, -1]).all() & (ptr[0, 0] == 0) & (ptr[-1, -1] == nnz)
        if not (joined & (ptr.diff(dim=1) >= 0).all()):
            raise ValueError(
                f"row_ptr: expected offsets that never fall, from 0 to len(col_idx)={nnz}, "
                "each list starting where the one before ends"
            )
        if nnz == 0:
            return
        least, most = self.col_idx.aminmax()
        if least < 0 or most >= self.blocks:
            raise ValueError(f"col_idx: expected block numbers from 0 to {self.blocks - 1}")
        ascending = self.col_idx[1:] > self.col_idx[:-1]
        starts = self.row_ptr[:, :-1].flatten()
        ascending[starts[(starts > 0) & (starts < nnz)] - 1] = True
        if not ascending.all():
            raise ValueError("col_idx: expected ascending block numbers in each row, none twice")

    @classmethod
    def from_dense(cls, dense: torch.Tensor, block_size: int) -> BlockMask:
        """The mask of a bool tensor (1 or H, M, M): [head, query block, key block]."""
        square = isinstance(dense, torch.Tensor) and dense.dim() == 3
        if not square or dense.shape[1] != dense.shape[2] or dense.dtype != torch.bool:
            got = (dense.dtype, tuple(dense.shape)) if isinstance(dense, torch.Tensor) else dense
            raise ValueError(f"dense={got}: expected a bool tensor (heads, M, M)")
        col_idx = dense.nonzero()[:, 2].to(torch.int32)
        return cls(pointers(dense.sum(dim=2)), col_idx, block_size)

    def to_dense(self) -> torch.Tensor:
        """(G, M, M) bool, M x M bytes a head."""
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
        return self.row_ptr.device

    def to(self, device) -> BlockMask:
        """The same mask on another device."""
        if torch.device(device) == self.device:
            return self
        return BlockMask(self.row_ptr.to(device), self.col_idx.to(device), self.block_size)

    def check_fits(self, seq_len: int, heads: int) -> None:
        """ValueError unless the mask covers `seq_len` tokens of `heads` heads."""
        if self.blocks != -(-seq_len // self.block_size):
            raise ValueError(
                f"mask has {self.blocks} blocks of {self.block_size} tokens: "
                f"expected {-(-seq_len // self.block_size)} blocks for {seq_len} tokens"
            )
        if self.heads not in (1, heads):
            raise ValueError(f"mask has lists of {self.heads} heads: expected 1 or {heads}")

    def density(self, is_causal: bool = False) -> float:
        """Kept blocks over allowed blocks; when causal, those up to the diagonal count."""
        allowed = self.blocks * (self.blocks + 1) // 2 if is_causal else self.blocks**2
        return len((self.causal() if is_causal else self).col_idx) / (self.heads * allowed)

    def pairs(self, seq_len: int, heads: int, is_causal: bool) -> int:
        """Query-key pairs of tokens over all heads; when causal, cut at the diagonal."""
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

        rows: (R,) int64 positions of the queries. Returns (R, n_keys) int64.
        """
        self.check_fits(n_keys, heads)
        ptr = self.row_ptr[head if self.heads > 1 else 0]
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
        """(G, M) int64: the last key block of each row, -1 where it has none."""
        if len(self.col_idx) == 0:
            return torch.full_like(self.row_ptr[:, 1:], -1)
        last = self.col_idx[(self.row_ptr[:, 1:] - 1).clamp(min=0)].long()
        return last.masked_fill(self.lengths() == 0, -1)

    def longest_first(self) -> torch.Tensor:
        """(G, M) int32: row numbers by falling length, ties by row number; computed once."""
        with torch.inference_mode(False):  # a later call may save it for backward
            return self._longest_first

    @cached_property
    def plans(self) -> dict:
        """What backends have worked out from the lists alone, kept for as long as the mask is."""
        return {}

    def only(self, kept: torch.Tensor) -> BlockMask:
        """The mask with those entries alone for which `kept` (nnz,) bool is True."""
        # Rows are sorted, and stay so; `before` counts kept entries.
        before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        return BlockMask.of(before[self.row_ptr], self.col_idx[kept], self.block_size)

    def entry_rows(self) -> torch.Tensor:
        """(nnz,) int32: the row of each entry, counted on from head to head."""
        rows = torch.arange(self.heads * self.blocks, dtype=torch.int32, device=self.device)
        lengths = self.lengths().flatten()
        return rows.repeat_interleave(lengths, output_size=len(self.col_idx))

    def neighbours(self, is_causal: bool) -> tuple[torch.Tensor, ...] | None:
        """Lists of two query blocks at once where that pays, else None; computed once.

        Three tensors, of `models.patterns.block_pairs.paired`.
        """
        if is_causal not in self._neighbours:
            from models.patterns import block_pairs

            with torch.inference_mode(False):
                self._neighbours[is_causal] = block_pairs.neighbours(self, is_causal)
        return self._neighbours[is_causal]

    @cached_property
    def pairs_heads(self) -> bool:
        """Whether heads 2i and 2i + 1 have the same lists, for all i; computed once."""
        from models.patterns import block_pairs

        return self.heads == 1 or block_pairs.heads_alike(self)

    def causal(self) -> BlockMask:
        """The mask without the blocks above the diagonal; computed once."""
        with torch.inference_mode(False):
            return self._causal or self

    def transpose(self) -> BlockMask:
        """Key block -> query blocks, ascending, as the backward pass walks; computed once."""
        with torch.inference_mode(False):  # a later call may save it for backward
            return self._transpose

    def split(self, factor: int, seq_len: int) -> BlockMask:
        """The same pairs of `seq_len` tokens in blocks `factor` times smaller; computed once.

        ValueError unless `factor` divides block_size and the mask covers seq_len tokens.
        """
        factor, seq_len = as_integer("factor", factor), as_integer("seq_len", seq_len)
        if self.block_size % factor:
            raise ValueError(f"factor={factor}: expected a divisor of {self.block_size}")
        self.check_fits(seq_len, self.heads)
        if (factor, seq_len) not in self._splits:
            with torch.inference_mode(False):
                self._splits[factor, seq_len] = self._split(factor, seq_len)
        return self._splits[factor, seq_len]

    def union(self, other: BlockMask) -> BlockMask:
        """The blocks kept by either mask; also `|`."""
        return self._from_keys(torch.cat(self._both_keys(other)).unique(), other)

    def intersection(self, other: BlockMask) -> BlockMask:
        """The blocks kept by both masks; also `&`."""
        keys = torch.cat(self._both_keys(other)).sort().values
        return self._from_keys(keys[1:][keys[1:] == keys[:-1]], other)

    __or__ = union
    __and__ = intersection

    def to_flex(self, seq_len: int, is_causal: bool = False):
        """PyTorch's BlockMask, for a compiled `flex_attention` over `seq_len` tokens.

        Blocks that need a look at single tokens (the diagonal when causal, a short last
        block) are its partial ones. See `models.flex`, whose backend this is.
        """
        from models.flex import block_mask

        return block_mask(self, seq_len, is_causal)

    def draw(self, ax, head: int = 0) -> None:
        """Draw the mask of `head` into matplotlib axes, by density where M is large."""
        from models.patterns.block_picture import draw

        draw(self, ax, head)

    @cached_property
    def _splits(self) -> dict[tuple[int, int], BlockMask]:
        return {}

    def _split(self, factor: int, seq_len: int) -> BlockMask:
        size = self.block_size // factor
        blocks = -(-seq_len // size)
        whole = torch.arange(blocks, device=self.device) // factor
        lengths = self.lengths()[:, whole]
        starts, row = self.row_ptr[:, whole].flatten(), lengths.flatten()
        # Each small row lists its whole row again, each entry of that as `factor` small ones.
        place = torch.arange(int(row.sum()), device=self.device)
        place += (starts - (row.cumsum(0) - row)).repeat_interleave(row)
        parts = torch.arange(factor, dtype=torch.int32, device=self.device)
        columns = (self.col_idx[place, None] * factor + parts).flatten()
        # The last whole block may have fewer than `factor` small ones.
        beyond = self.blocks * factor - blocks
        ends = (self.last_blocks() == self.blocks - 1)[:, whole]
        return BlockMask(
            pointers(lengths * factor - beyond * ends), columns[columns < blocks], size
        )

    @cached_property
    def _neighbours(self) -> dict[bool, tuple[torch.Tensor, ...] | None]:
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
        rows = self.entry_rows()
        column = self.col_idx + rows // self.blocks * self.blocks
        # Entries come by ascending row, and a stable sort by column keeps them so.
        column, order = column.sort(stable=True)
        bounds = torch.arange(self.heads * self.blocks + 1, device=self.device)
        ptr = torch.searchsorted(column, bounds.to(column.dtype))
        return BlockMask(self._by_head(ptr), rows[order] % self.blocks, self.block_size)

    def _both_keys(self, other: BlockMask) -> list[torch.Tensor]:
        """Each mask's entries as ascending numbers `(head * M + row) * M + column`."""
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
        keys = []
        for mask in (self, other):
            if mask.heads not in (1, heads):
                raise ValueError(f"mask has lists of {mask.heads} heads: expected 1 or {heads}")
            key = mask.entry_rows().long() * self.blocks + mask.col_idx
            if mask.heads < heads:
                head = torch.arange(heads, device=self.device)[:, None]
                key = (head * self.blocks**2 + key).flatten()
            keys.append(key)
        return keys

    def _from_keys(self, keys: torch.Tensor, other: BlockMask) -> BlockMask:
        heads = max(self.heads, other.heads)
        bounds = torch.arange(heads * self.blocks + 1, device=self.device) * self.blocks
        ptr = self._by_head(torch.searchsorted(keys, bounds))
        return BlockMask(ptr, (keys % self.blocks).to(torch.int32), self.block_size)

    def _by_head(self, ptr: torch.Tensor) -> torch.Tensor:
        """(G * M + 1,) offsets as (G, M + 1), each list with its own end."""
        return torch.cat([ptr[:-1].view(-1, self.blocks), ptr[self.blocks :: self.blocks, None]], 1)


def pointers(lengths: torch.Tensor) -> torch.Tensor:
    """row_ptr (G, M + 1) of lists with these row lengths (G, M) int64."""
    ends = lengths.flatten().cumsum(0).view_as(lengths)
    return torch.cat([ends[:, :1] - lengths[:, :1], ends], dim=1)


def _is_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    where = ((x.data_ptr(), x.shape, x.stride(), x.dtype, x.device) for x in (a, b))
    return next(where) == next(where)
