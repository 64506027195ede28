"""The reference of a sequence that no memory holds: sampled rows, and the keys of those alone."""

from __future__ import annotations

import torch

from models.oracle import attend_rows
from models.patterns.branches import DilatedBranches
from models.sources import GeneratedSource

# A block of `models.sources.GeneratedSource`.
READ_TOKENS = 32768


def sampled_reference(
    source: GeneratedSource, pattern: DilatedBranches, rows: torch.Tensor, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Out (B, R, H, D) of positions `rows` by plain softmax, in float64 and in the source's dtype.

    Of each row the keys that it attends to are read from the source, one of two branches twice,
    and nothing else is kept: O(rows x keys of a row) at any length.
    """
    heads, group = source.heads, source.heads // source.kv_heads
    pairs = [(int(row), head) for row in rows for head in range(heads)]
    options = (source.seq_len, is_causal)
    keys = [pattern.keys(head, heads, row, *options) for row, head in pairs]
    sizes = [len(one) for one in keys]
    # One list of all that is to be read, by position: (position, head, place in the result).
    position = torch.cat([torch.tensor([row for row, _ in pairs]), *keys])
    q_heads = torch.tensor([head for _, head in pairs])
    of_keys = torch.repeat_interleave(q_heads // group, torch.tensor(sizes))
    head = torch.cat([q_heads, of_keys])
    order = torch.argsort(position, stable=True)
    read = _read_tokens(source, position, head, order, len(pairs))
    q, *kv = read
    outs = {}
    for dtype in (torch.float64, source.dtype):
        parts = []
        for i, (k, v) in enumerate(zip(*(x.split(sizes, dim=1) for x in kv), strict=True)):
            if not sizes[i]:
                parts.append(torch.zeros_like(q[:, :1, None]).to(dtype))
                continue
            one = [x.to(dtype)[:, :, None] for x in (q[:, i : i + 1], k, v)]
            parts.append(attend_rows(*one, torch.zeros(1, dtype=torch.int64, device=q.device))[0])
        outs[dtype] = torch.cat(parts, dim=1).view(source.batch, len(rows), heads, -1)
    return outs[torch.float64], outs[source.dtype]


def _read_tokens(source, position, head, order, queries: int):
    """q (B, queries, D) and k, v (B, keys, D) of single heads of single tokens, read in order.

    position, head: of the queries first, then of the keys; order: ascending positions.
    """
    shape = (source.batch, len(position), source.head_dim)
    k, v = (torch.empty(shape, dtype=source.dtype, device=source.device) for _ in range(2))
    q = torch.empty_like(k[:, :queries])
    ascending = position[order]
    begin = 0
    while begin < len(order):
        start = int(ascending[begin]) // READ_TOKENS * READ_TOKENS
        stop = min(start + READ_TOKENS, source.seq_len)
        end = int(torch.searchsorted(ascending, stop))
        tensors = source.read(start, stop)
        places = order[begin:end]
        is_query = places < queries
        for x, tensor, chosen in zip(
            (q, k, v), tensors, (places[is_query], *2 * [places[~is_query]]), strict=True
        ):
            x[:, chosen] = tensor[:, position[chosen] - start, head[chosen]]
        begin = end
    return q, k[:, queries:], v[:, queries:]
