"""Builders of block masks: a local window, dilated, global and strided lists, random, top-k.

All obey `sparsity` row by row. Row i may attend to `allowed` blocks, all M or, when causal,
the i + 1 up to the diagonal, and keeps `max(1, round((1 - sparsity) * allowed))` of them, its
own block always among them. Time and memory are O(kept blocks), in pieces of bounded size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real

import torch

from models.errors import as_integer
from models.patterns.block_mask import BlockMask
from models.patterns.block_random import distinct, left_out
from models.patterns.csr import row_pointers
from models.qkv import check_qkv, check_same_length

# Entries (for `top_k`, scores) computed at once: temporary tensors stay at a few MB.
_ENTRIES_AT_ONCE = 1 << 18
_SCORES_AT_ONCE = 1 << 22


def local_window(
    seq_len: int,
    *,
    sparsity: float,
    block_size: int = 64,
    is_causal: bool = False,
    heads: int = 1,
    device: torch.device | str | None = None,
) -> BlockMask:
    """The nearest blocks, with the row's own in the middle or, when causal, last.

    Near the ends of the sequence the window is shifted inwards, so it never shrinks.

    Args:
        seq_len: N, tokens.
        sparsity: share of the allowed blocks to leave out, at least 0 and below 1.
        block_size: tokens per block.
        is_causal: allow no blocks above the diagonal.
        heads: 1 for lists that all heads share, any number of them; else H, for lists per head.
        device: of the mask, None for the CPU.

    Returns:
        A mask of M = ceil(N / block_size) blocks.

    Raises:
        ValueError: on bad arguments.
    """
    seq_len, sparsity, block_size, heads = _numbers(seq_len, sparsity, block_size, heads)
    kept, device = _budget(seq_len, sparsity, block_size, is_causal, device)
    start = _window(kept, kept, is_causal).to(device)
    return _build(kept, heads, block_size, device, lambda row, place: start[row] + place)


def dilated(
    seq_len: int,
    *,
    sparsity: float,
    block_size: int = 64,
    is_causal: bool = False,
    heads: int = 1,
    device: torch.device | str | None = None,
) -> BlockMask:
    """The own block, and others at distances whose gaps grow steadily ("dilated sparse").

    Of n blocks on a side that has A, the t-th nearest (t = 1 .. n) lies at distance
    `t + (A - n) * t^2 // n^2`: adjacent at first, then in ever longer steps, the last at
    the far end. Half of the budget goes to each side, less where a side is shorter.

    Args:
        seq_len, sparsity, block_size, is_causal, heads, device: as of `local_window`.

    Returns:
        A mask of M = ceil(N / block_size) blocks.

    Raises:
        ValueError: on bad arguments.
    """
    seq_len, sparsity, block_size, heads = _numbers(seq_len, sparsity, block_size, heads)
    kept, device = _budget(seq_len, sparsity, block_size, is_causal, device)
    blocks = len(kept)
    own = torch.arange(blocks)
    room_right = torch.zeros_like(own) if is_causal else blocks - 1 - own
    left = torch.minimum(own, torch.maximum(kept - 1 - room_right, kept // 2))
    right = kept - 1 - left
    left, right, room_right = (x.to(device) for x in (left, right, room_right))

    def columns(row, place):
        step = place - left[row]
        before = step < 0
        count = torch.where(before, left[row], right[row]).clamp(min=1)
        room = torch.where(before, row, room_right[row])
        return row + step + step.sign() * ((room - count) * step.square() // count.square())

    return _build(kept, heads, block_size, device, columns)


def global_local(
    seq_len: int,
    *,
    sparsity: float,
    block_size: int = 64,
    is_causal: bool = False,
    heads: int = 1,
    device: torch.device | str | None = None,
    global_blocks: int = 1,
) -> BlockMask:
    """The first `global_blocks` key blocks, attended to by every row, and a local window.

    The rows of those blocks are not longer than others, since every row obeys `sparsity`.
    A row whose budget is smaller keeps its own block and as many of the first ones as it can.

    Args:
        seq_len, sparsity, block_size, is_causal, heads, device: as of `local_window`.
        global_blocks: an integer >= 1.

    Returns:
        A mask of M = ceil(N / block_size) blocks.

    Raises:
        ValueError: on bad arguments.
    """
    global_blocks = as_integer("global_blocks", global_blocks)
    seq_len, sparsity, block_size, heads = _numbers(seq_len, sparsity, block_size, heads)
    kept, device = _budget(seq_len, sparsity, block_size, is_causal, device)
    first = (kept - 1).clamp(max=global_blocks)
    start = _window(kept, kept - first, is_causal).maximum(first).to(device)
    first = first.to(device)

    def columns(row, place):
        return torch.where(place < first[row], place, start[row] + place - first[row])

    return _build(kept, heads, block_size, device, columns)


def strided(
    seq_len: int,
    *,
    sparsity: float,
    block_size: int = 64,
    is_causal: bool = False,
    heads: int = 1,
    device: torch.device | str | None = None,
) -> BlockMask:
    """Every s-th block counted from the row's own, and a local window (Sparse Transformer).

    Child et al. 2019 (arXiv 1904.10509), section 4.2, by blocks. The stride is
    `s = round(2 / (1 - sparsity))`, which spends half of the budget; the window is as long
    as the rest allows.

    Args:
        seq_len, sparsity, block_size, is_causal, heads, device: as of `local_window`.

    Returns:
        A mask of M = ceil(N / block_size) blocks.

    Raises:
        ValueError: on bad arguments.
    """
    seq_len, sparsity, block_size, heads = _numbers(seq_len, sparsity, block_size, heads)
    kept, device = _budget(seq_len, sparsity, block_size, is_causal, device)
    blocks = len(kept)
    own = torch.arange(blocks)
    last = own if is_causal else torch.full_like(own, blocks - 1)
    stride = min(round(2 / (1 - sparsity)), blocks)

    def parts(length):
        start = _window(kept, length, is_causal)
        # Blocks at multiples of the stride before the window and after it.
        before = own // stride - (own - start) // stride
        after = (last - own) // stride - (start + length - 1 - own) // stride
        return start, before, after

    # A longer window adds one block to the row, or none where the stride has that block already.
    low, high = torch.ones_like(kept), kept.clone()
    while (low < high).any():
        middle = (low + high + 1) // 2
        _, before, after = parts(middle)
        fits = before + middle + after <= kept
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle - 1)
    start, before, after = parts(low)
    kept = before + low + after
    start, before, length = (x.to(device) for x in (start, before, low))

    def columns(row, place):
        inside = place - before[row]
        beyond = inside - length[row]
        steps = (start[row] + length[row] - 1 - row) // stride + 1 + beyond
        window = start[row] + inside
        return torch.where(
            inside < 0,
            row % stride + place * stride,
            torch.where(beyond < 0, window, row + steps * stride),
        )

    return _build(kept, heads, block_size, device, columns)


def random(
    seq_len: int,
    *,
    sparsity: float,
    block_size: int = 64,
    is_causal: bool = False,
    heads: int = 1,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> BlockMask:
    """The own block, and others drawn uniformly without replacement, independently per head.

    Args:
        seq_len, sparsity, block_size, is_causal, heads, device: as of `local_window`.
        seed: an integer >= 0; the same seed gives the same mask on every device.

    Returns:
        A mask of M = ceil(N / block_size) blocks.

    Raises:
        ValueError: on bad arguments.
    """
    seed = as_integer("seed", seed, least=0)
    seq_len, sparsity, block_size, heads = _numbers(seq_len, sparsity, block_size, heads)
    kept, device = _budget(seq_len, sparsity, block_size, is_causal, device)
    blocks = len(kept)
    others = kept - 1
    pool = torch.arange(blocks) if is_causal else torch.full_like(kept, blocks - 1)
    # Where more than half are kept, draw those left out instead: duplicates stay rare.
    inverted = others > pool - others
    drawn = torch.where(inverted, pool - others, others)
    row_ptr = row_pointers(kept[None].expand(heads, -1))
    col_idx = torch.empty(row_ptr[-1, -1], dtype=torch.int32, device=device)
    for head in range(heads):
        for rows in _pieces(kept):
            own = torch.arange(rows.start, rows.stop, device=device)[:, None]
            count, size, flip = (x[rows, None].to(device) for x in (drawn, pool, inverted))
            width = int(kept[rows].max())
            columns = distinct(size, count, head * blocks + own, seed, width - 1)
            if inverted[rows].any():
                columns = torch.where(flip, left_out(columns, count, width - 1), columns)
            # So far numbers skip the own block; entries past a row's count are sorted last.
            columns = columns + (columns >= own)
            beyond = torch.arange(width - 1, device=device) >= (kept[rows, None] - 1).to(device)
            columns = torch.cat([own, columns.masked_fill(beyond, blocks)], dim=1)
            columns = columns.to(torch.int32).sort(dim=1).values
            span = slice(row_ptr[head, rows.start], row_ptr[head, rows.stop])
            col_idx[span] = columns[columns < blocks]
    return BlockMask(row_ptr.to(device), col_idx, block_size)


def top_k(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    sparsity: float,
    block_size: int = 64,
    is_causal: bool = False,
) -> BlockMask:
    """For each head and query block, its own block and the key blocks with the highest mean scores.

    A score is the dot product of the mean query and the mean key of two blocks, averaged over the
    batch, which shares the mask; no gradient. Scores of a bounded number of rows exist at a time.

    Args:
        q: (B, N, H, D).
        k: (B, N, Hkv, D), H a multiple of Hkv.
        sparsity, block_size, is_causal: as of `local_window`.

    Returns:
        A mask on q's device with lists for H heads.

    Raises:
        ValueError: on bad arguments.
    """
    check_qkv(q, k, k)
    check_same_length(q, k)
    heads, device = q.shape[2], q.device
    seq_len, sparsity, block_size, _ = _numbers(q.shape[1], sparsity, block_size, heads)
    kept, _ = _budget(seq_len, sparsity, block_size, is_causal, device)
    blocks = len(kept)
    q, k = (_block_means(x.detach(), block_size) for x in (q, k))
    k = k.repeat_interleave(heads // k.shape[0], dim=0).transpose(1, 2)
    lists = []
    step = max(1, _SCORES_AT_ONCE // (heads * blocks))
    for rows in (slice(i, min(i + step, blocks)) for i in range(0, blocks, step)):
        own = torch.arange(rows.start, rows.stop, device=device)[:, None]
        scores = q[:, rows] @ k
        column = torch.arange(blocks, device=device)
        if is_causal:
            scores.masked_fill_(column > own, -torch.inf)
        scores.masked_fill_(column == own, torch.inf)
        best = scores.topk(int(kept[rows].max()), dim=2).indices
        place = torch.arange(best.shape[2], device=device)
        best = best.masked_fill(place >= kept[rows, None].to(device), blocks)
        best = best.to(torch.int32).sort(dim=2).values
        lists.append([row[row < blocks] for row in best])
    col_idx = torch.cat([part[head] for head in range(heads) for part in lists])
    row_ptr = row_pointers(kept[None].expand(heads, -1)).to(device)
    return BlockMask(row_ptr, col_idx, block_size)


def _block_means(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """(B, N, H, D) -> (H, M, B * D): means over each block's tokens, in float32 at least.

    The scores' mean over the batch is a dot product over batch and head dimension.
    """
    batch, n, heads, dim = x.shape
    blocks = -(-n // block_size)
    accumulator = torch.promote_types(x.dtype, torch.float32)
    sums = x.new_zeros(batch, blocks, heads, dim, dtype=accumulator)
    whole = n // block_size
    full = x[:, : whole * block_size].unflatten(1, (whole, block_size))
    sums[:, :whole] = full.sum(dim=2, dtype=accumulator) / block_size
    if whole < blocks:
        sums[:, whole] = x[:, whole * block_size :].mean(dim=1, dtype=accumulator)
    return sums.permute(2, 1, 0, 3).reshape(heads, blocks, batch * dim)


def _numbers(seq_len, sparsity, block_size, heads) -> tuple[int, float, int, int]:
    """The common arguments, checked, as Python's numbers."""
    integers = (("seq_len", seq_len), ("block_size", block_size), ("heads", heads))
    seq_len, block_size, heads = (as_integer(*pair) for pair in integers)
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise ValueError(f"sparsity={sparsity!r}: expected a number")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity!r}: expected at least 0 and below 1")
    return seq_len, float(sparsity), block_size, heads


def _budget(seq_len, sparsity, block_size, is_causal, device):
    """The number of blocks that each row keeps, (M,) int64 on the CPU, and the device."""
    blocks = -(-seq_len // block_size)
    allowed = torch.arange(1, blocks + 1) if is_causal else torch.full((blocks,), blocks)
    kept = ((1 - sparsity) * allowed.double()).round().long().clamp(min=1)
    return kept, torch.device("cpu" if device is None else device)


def _window(kept: torch.Tensor, length: torch.Tensor, is_causal: bool) -> torch.Tensor:
    """Where each row's window of `length` blocks (M,) starts."""
    blocks = len(kept)
    own = torch.arange(blocks)
    if is_causal:
        return own + 1 - length
    return (own - length // 2).clamp(min=0).minimum(blocks - length)


def _pieces(kept: torch.Tensor) -> Iterator[slice]:
    """Rows, a bounded number of entries at a time."""
    step = max(1, _ENTRIES_AT_ONCE // int(kept.max()))
    for start in range(0, len(kept), step):
        yield slice(start, min(start + step, len(kept)))


def _build(
    kept: torch.Tensor,
    heads: int,
    block_size: int,
    device: torch.device,
    columns: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> BlockMask:
    """The mask whose row `row` holds `columns(row, place)` for `place` from 0 to its count."""
    ptr = row_pointers(kept[None])
    lists = torch.empty(heads, int(ptr[0, -1]), dtype=torch.int32, device=device)
    offsets, counts = ptr[0].to(device), kept.to(device)
    for rows in _pieces(kept):
        first, stop = int(ptr[0, rows.start]), int(ptr[0, rows.stop])
        row = torch.arange(rows.start, rows.stop, device=device)
        row = row.repeat_interleave(counts[rows], output_size=stop - first)
        place = torch.arange(first, stop, device=device) - offsets[row]
        lists[:, first:stop] = columns(row, place)
    row_ptr = row_pointers(kept[None].expand(heads, -1)).to(device)
    return BlockMask(row_ptr, lists.flatten(), block_size)
