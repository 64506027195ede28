"""CSR lists of key blocks as plain arrays: what `models.patterns.block_mask.BlockMask` is made of.

row_ptr: (G, M + 1) int64, offsets into the flat col_idx: row i of list g holds
`col_idx[row_ptr[g, i] : row_ptr[g, i + 1]]`, lists one after the other without gaps.
col_idx: (nnz,) int32, key block numbers, ascending within a row. Rows are numbered on from list to
list: row i of list g is row `g * M + i`.
"""

from __future__ import annotations

import torch

Lists = tuple[torch.Tensor, torch.Tensor]


def row_pointers(lengths: torch.Tensor) -> torch.Tensor:
    """The row_ptr of lists with these row lengths.

    Args:
        lengths: (G, M) int64, entries per row.

    Returns:
        (G, M + 1) int64.
    """
    ends = lengths.flatten().cumsum(0).view_as(lengths)
    return torch.cat([ends[:, :1] - lengths[:, :1], ends], dim=1)


def entry_rows(row_ptr: torch.Tensor, entries: int) -> torch.Tensor:
    """The row of each entry.

    Args:
        row_ptr: (G, M + 1) int64.
        entries: nnz, which is on the host already, so that no device is waited for.

    Returns:
        (nnz,) int32, from 0 to G * M - 1, ascending.
    """
    lengths = row_ptr.diff(dim=1).flatten()
    rows = torch.arange(len(lengths), dtype=torch.int32, device=row_ptr.device)
    return rows.repeat_interleave(lengths, output_size=entries)


def last_columns(row_ptr: torch.Tensor, col_idx: torch.Tensor) -> torch.Tensor:
    """The last entry of each row.

    Args:
        row_ptr: (G, M + 1) int64.
        col_idx: (nnz,) int32.

    Returns:
        (G, M) int64, -1 for empty rows.
    """
    if len(col_idx) == 0:
        return torch.full_like(row_ptr[:, 1:], -1)
    last = col_idx[(row_ptr[:, 1:] - 1).clamp(min=0)].long()
    return last.masked_fill(row_ptr.diff(dim=1) == 0, -1)


def check_types(row_ptr: torch.Tensor, col_idx: torch.Tensor) -> None:
    """Check what the lists are: (G, M + 1) int64 and (nnz,) int32, on one device.

    Args:
        row_ptr, col_idx: anything.

    Raises:
        ValueError: where one is no such tensor, or G or M is 0.
    """
    of_types = (("row_ptr", row_ptr, torch.int64, 2), ("col_idx", col_idx, torch.int32, 1))
    for name, x, dtype, dims in of_types:
        if not isinstance(x, torch.Tensor) or x.dtype != dtype or x.dim() != dims:
            got = (x.dtype, tuple(x.shape)) if isinstance(x, torch.Tensor) else type(x)
            raise ValueError(f"{name}={got}: expected a tensor of {dtype} with {dims} dims")
    if row_ptr.device != col_idx.device:
        raise ValueError(f"col_idx is on {col_idx.device}: expected {row_ptr.device}, as row_ptr")
    if row_ptr.shape[0] < 1 or row_ptr.shape[1] < 2:
        raise ValueError(f"row_ptr={tuple(row_ptr.shape)}: expected (G, M + 1), neither G nor M 0")


def check_values(row_ptr: torch.Tensor, col_idx: torch.Tensor) -> None:
    """Check the values of lists that `check_types` accepts.

    Args:
        row_ptr: (G, M + 1) int64.
        col_idx: (nnz,) int32.

    Raises:
        ValueError: offsets that fall or leave gaps, block numbers outside of 0 to M - 1, or not
            ascending within a row.
    """
    nnz, blocks = len(col_idx), row_ptr.shape[1] - 1
    joined = (row_ptr[1:, 0] == row_ptr[:-1, -1]).all()
    joined &= (row_ptr[0, 0] == 0) & (row_ptr[-1, -1] == nnz)
    if not (joined & (row_ptr.diff(dim=1) >= 0).all()):
        raise ValueError(
            f"row_ptr: expected offsets that never fall, from 0 to len(col_idx)={nnz}, "
            "each list starting where the one before ends"
        )
    if nnz == 0:
        return
    least, most = col_idx.aminmax()
    if least < 0 or most >= blocks:
        raise ValueError(f"col_idx: expected block numbers from 0 to {blocks - 1}")
    ascending = col_idx[1:] > col_idx[:-1]
    starts = row_ptr[:, :-1].flatten()
    ascending[starts[(starts > 0) & (starts < nnz)] - 1] = True
    if not ascending.all():
        raise ValueError("col_idx: expected ascending block numbers in each row, none twice")


def transposed(row_ptr: torch.Tensor, col_idx: torch.Tensor) -> Lists:
    """The rows that hold each column.

    Args:
        row_ptr: (G, M + 1) int64.
        col_idx: (nnz,) int32.

    Returns:
        row_ptr (G, M + 1) int64 and col_idx (nnz,) int32 of query blocks per key block, ascending.
    """
    heads, blocks = row_ptr.shape[0], row_ptr.shape[1] - 1
    rows = entry_rows(row_ptr, len(col_idx))
    column = col_idx + rows // blocks * blocks
    # Entries come by ascending row, and a stable sort by column keeps them so.
    column, order = column.sort(stable=True)
    bounds = torch.arange(heads * blocks + 1, device=row_ptr.device)
    ptr = torch.searchsorted(column, bounds.to(column.dtype))
    return _by_head(ptr, blocks), rows[order] % blocks


def split(row_ptr: torch.Tensor, col_idx: torch.Tensor, factor: int, blocks: int) -> Lists:
    """The same pairs in blocks `factor` times smaller.

    Args:
        row_ptr: (G, M + 1) int64.
        col_idx: (nnz,) int32.
        factor: small blocks per block.
        blocks: of the small blocks, those that the sequence has; the last block may have fewer
            than `factor`.

    Returns:
        row_ptr (G, blocks + 1) int64 and col_idx int32.
    """
    whole = torch.arange(blocks, device=row_ptr.device) // factor
    lengths = row_ptr.diff(dim=1)[:, whole]
    starts, row = row_ptr[:, whole].flatten(), lengths.flatten()
    # Each small row repeats the list of its large row, each entry of that as `factor` small ones.
    place = torch.arange(int(row.sum()), device=row_ptr.device)
    place += (starts - (row.cumsum(0) - row)).repeat_interleave(row)
    parts = torch.arange(factor, dtype=torch.int32, device=row_ptr.device)
    columns = (col_idx[place, None] * factor + parts).flatten()
    before = row_ptr.shape[1] - 1
    beyond = before * factor - blocks
    ends = (last_columns(row_ptr, col_idx) == before - 1)[:, whole]
    return row_pointers(lengths * factor - beyond * ends), columns[columns < blocks]


def entry_keys(row_ptr: torch.Tensor, col_idx: torch.Tensor, heads: int) -> torch.Tensor:
    """Each entry as one number, for set operations.

    Args:
        row_ptr: (G, M + 1) int64, G = 1 or `heads`.
        col_idx: (nnz,) int32.
        heads: lists of the result; one list is repeated for each.

    Returns:
        (heads / G * nnz,) int64, `(head * M + row) * M + column`, ascending.
    """
    blocks = row_ptr.shape[1] - 1
    keys = entry_rows(row_ptr, len(col_idx)).long() * blocks + col_idx
    if row_ptr.shape[0] < heads:
        head = torch.arange(heads, device=row_ptr.device)[:, None]
        keys = (head * blocks**2 + keys).flatten()
    return keys


def lists_of_keys(keys: torch.Tensor, heads: int, blocks: int) -> Lists:
    """The lists of what `entry_keys` gave.

    Args:
        keys: (nnz,) int64, ascending, none twice.
        heads: G.
        blocks: M.

    Returns:
        row_ptr (G, M + 1) int64 and col_idx (nnz,) int32.
    """
    bounds = torch.arange(heads * blocks + 1, device=keys.device) * blocks
    ptr = _by_head(torch.searchsorted(keys, bounds), blocks)
    return ptr, (keys % blocks).to(torch.int32)


def _by_head(ptr: torch.Tensor, blocks: int) -> torch.Tensor:
    """(G * M + 1,) offsets as (G, M + 1), each list with its own end."""
    return torch.cat([ptr[:-1].view(-1, blocks), ptr[blocks::blocks, None]], 1)
