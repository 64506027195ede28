"""Block-sparse attention by gathered key blocks: plain PyTorch, any device, any float dtype.

The key blocks of a query block are copied side by side, and each row is one softmax over
them; query blocks with equally long lists go together (`models.block_chunks`). Heads are
done one after another in the same memory, half types in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from models.block_chunks import Chunk, plan
from models.merge import merge_into


def attend(q, k, v, mask, is_causal: bool, scale: float, return_lse: bool):
    """Attention under `mask`, a `models.patterns.BlockMask` that fits.

    q: (B, N, H, D), k, v: (B, N, Hkv, D). Returns out (B, N, H, D) and LSE (B, H, N),
    float32 at least, or None unless asked for; both differentiable. Rows without keys give
    0 and -inf. Bitwise repeatable; besides the results, memory is that of a few heads.
    """
    mask = mask.causal() if is_causal else mask
    out, lse = GatheredBlocks.apply(q, k, v, mask, is_causal, scale, return_lse)
    return out, lse if return_lse else None


class GatheredBlocks(torch.autograd.Function):
    """(q, k, v) -> (out, LSE or None); the backward pass starts from out, and from the LSE
    where rows are done in pieces."""

    @staticmethod
    def forward(ctx, q, k, v, mask, is_causal, scale, needs_lse):
        work = _Work(q, k, mask, is_causal)
        needs_lse |= work.plan.in_pieces
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:3], dtype=work.dtype, device=q.device) if needs_lse else None
        for chunks, of_queries, of_keys in work.groups():
            queries = work.cut_queries("q", q[of_queries]).mul_(scale)
            keys, values = work.cut("k", k[of_keys]), work.cut("v", v[of_keys])
            result = work.room("out", *queries.shape)
            result_lse = work.room("lse", *queries.shape[:2])
            if work.plan.has_empty:
                result.zero_()
                result_lse.fill_(-torch.inf)
            for chunk in chunks:
                part, part_lse = work.attend(chunk, queries, keys, values, needs_lse)
                if not chunk.is_first:
                    joined, joined_lse = result[chunk.tiles], result_lse[chunk.tiles]
                    merge_into(joined, joined_lse, part, part_lse)
                    part, part_lse = joined, joined_lse
                result[chunk.tiles] = part
                if needs_lse:
                    result_lse[chunk.tiles] = part_lse
            work.join_queries(result, out[of_queries])
            if needs_lse:
                work.join_queries(result_lse, lse[of_queries])
        ctx.save_for_backward(q, k, v, out, lse if work.plan.in_pieces else None)
        ctx.set_materialize_grads(False)
        ctx.options = (mask, is_causal, scale)
        return out, lse.transpose(1, 2) if needs_lse else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse = ctx.saved_tensors
        if grad_out is None and grad_lse is None:
            return (None,) * 7
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        mask, is_causal, scale = ctx.options
        work = _Work(q, k, mask, is_causal)
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for chunks, of_queries, of_keys in work.groups():
            grads = grad_out[of_queries].to(work.dtype)
            # dS = P (dO V' - delta): through the output and, as P dLSE, through the LSE.
            delta = (grads * out[of_queries]).sum(dim=2)
            if grad_lse is not None:
                delta -= grad_lse.transpose(1, 2)[of_queries]
            queries = work.cut_queries("q", q[of_queries]).mul_(scale)
            grads, delta = work.cut_queries("grads", grads), work.cut_queries("delta", delta)
            row_lse = None if lse is None else work.cut_queries("lse", lse[of_queries])
            keys, values = work.cut("k", k[of_keys]), work.cut("v", v[of_keys])
            sums = [
                work.room(name, *x.shape).zero_()
                for name, x in (("dq", queries), ("dk", keys), ("dv", values))
            ]
            for chunk in chunks:
                work.add_gradients(chunk, queries, keys, values, grads, row_lse, delta, *sums)
            work.join_queries(sums[0].mul_(scale), dq[of_queries])
            work.join(sums[1], dk[of_keys])
            work.join(sums[2], dv[of_keys])
        return dq, dk, dv, *(None,) * 4


class _Work:
    """The steps of both passes, in memory that all groups of heads and all chunks use again."""

    def __init__(self, q, k, mask, is_causal):
        self.batch, n, heads, _ = q.shape
        self.kv_heads, self.per_key_head = k.shape[2], heads // k.shape[2]
        self.plan = plan(mask, n, heads, self.kv_heads, is_causal)
        self.block_size = mask.block_size
        self.dtype, self.device = torch.promote_types(q.dtype, torch.float32), q.device
        self.memory: dict[str, torch.Tensor] = {}
        self.views: dict[tuple, torch.Tensor] = {}
        token = torch.arange(mask.block_size, device=q.device)
        last = token[:, None] if is_causal else (n - 1) % mask.block_size
        self.hidden = token > last

    def groups(self) -> Iterator[tuple[list[Chunk], tuple, tuple]]:
        """Chunks of each group of heads, and its places in (B, N, H, ...) and (B, N, Hkv, ...)."""
        for b in range(self.batch):
            for first in range(0, self.kv_heads, self.plan.together):
                stop = first + self.plan.together
                q_heads = slice(first * self.per_key_head, stop * self.per_key_head)
                of_keys = (b, slice(None), slice(first, stop))
                yield self.plan.group(first), (b, slice(None), q_heads), of_keys

    def attend(self, chunk, queries, keys, values, with_lse):
        """Output (c, tile rows, D) and LSE (c, tile rows), or None, of the chunk's key blocks."""
        keys = self.gather("keys", keys, chunk)
        scores = self.scores(chunk, queries[chunk.tiles], keys)
        largest = scores.amax(dim=2) if with_lse else None
        # In place, which the op allows: it reads an element before it writes it.
        weights = torch.softmax(scores, dim=2, out=scores)
        # The largest weight is exp(largest - LSE), and at least 1 / keys.
        lse = largest - weights.amax(dim=2).log_() if with_lse else None
        # The keys are done with: the values take their place in cache.
        return torch.bmm(weights, self.gather("keys", values, chunk)), lse

    def add_gradients(self, chunk, queries, keys, values, grads, lse, delta, dq, dk, dv):
        """Add the chunk's share to dq / scale, dk, dv, given dO, LSE, delta of all rows."""
        queries, grads, delta = (x[chunk.tiles] for x in (queries, grads, delta))
        keys = self.gather("keys", keys, chunk)
        values = self.gather("values", values, chunk)
        scores = self.scores(chunk, queries, keys)
        if chunk.is_whole:
            weights = torch.softmax(scores, dim=2, out=scores)
        else:
            weights = scores.sub_(lse[chunk.tiles][..., None]).exp_()
        ds = self.room("ds", *weights.shape)
        torch.bmm(grads, values.mT, out=ds).sub_(delta[..., None]).mul_(weights)
        # What was gathered is done with: dV and dK take its place.
        self.scatter(dv, chunk, torch.bmm(weights.mT, grads, out=values))
        dq[chunk.tiles] += torch.bmm(ds, keys)
        self.scatter(dk, chunk, torch.bmm(ds.mT, queries, out=keys))

    def scores(self, chunk, queries, keys) -> torch.Tensor:
        """(c, tile rows, n * block_size) scores; -inf past the diagonal or past the end."""
        scores = self.room("scores", *queries.shape[:2], keys.shape[1])
        torch.bmm(queries, keys.mT, out=scores)
        if chunk.is_cut:
            last = scores.unflatten(1, (self.plan.stacked, -1))[..., -self.block_size :]
            last.masked_fill_(self.hidden, -torch.inf)
        return scores

    def gather(self, name, blocks, chunk) -> torch.Tensor:
        """The chunk's key blocks side by side, (c, n * block_size, D)."""
        _, size, dim = blocks.shape
        count = len(chunk.blocks)
        torch.index_select(blocks, 0, chunk.blocks, out=self.room(name, count, size, dim))
        return self.room(name, chunk.count, count // chunk.count * size, dim)

    def scatter(self, blocks, chunk, x) -> None:
        """Add x (c, n * block_size, D) to the chunk's key blocks, in a fixed order."""
        x = x.view(-1, *blocks.shape[1:])
        if self.device.type == "cpu":
            blocks.index_add_(0, chunk.blocks, x)
        else:
            # On CUDA index_add_ adds in any order; this sorts first.
            blocks.index_put_((chunk.blocks.long(),), x, accumulate=True)

    def room(self, name: str, *shape: int) -> torch.Tensor:
        """Memory of this shape with no certain content, the same for a name each time."""
        if (name, shape) not in self.views:
            size = math.prod(shape)
            if name not in self.memory or self.memory[name].numel() < size:
                self.memory[name] = torch.empty(size, dtype=self.dtype, device=self.device)
                self.views = {key: x for key, x in self.views.items() if key[0] != name}
            self.views[name, shape] = self.memory[name][:size].view(shape)
        return self.views[name, shape]

    def cut(self, name: str, x: torch.Tensor, stacked: int = 1) -> torch.Tensor:
        """x (N, heads, ...) as (tiles, stacked * block_size, ...), zeros past the end."""
        n, heads, *rest = x.shape
        blocks = -(-n // self.block_size)
        tiles = self.room(name, heads // stacked * blocks, stacked * self.block_size, *rest)
        if n < blocks * self.block_size:
            tiles.unflatten(0, (-1, blocks))[:, -1].zero_()
        for tile_part, part in self._same_elements(tiles, x, stacked):
            tile_part.copy_(part)
        return tiles

    def join(self, tiles: torch.Tensor, x: torch.Tensor, stacked: int = 1) -> None:
        """Write tiles into x (N, heads, ...): the inverse of `cut`."""
        for tile_part, part in self._same_elements(tiles, x, stacked):
            part.copy_(tile_part)

    def cut_queries(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.cut(name, x, self.plan.stacked)

    def join_queries(self, tiles: torch.Tensor, x: torch.Tensor) -> None:
        self.join(tiles, x, self.plan.stacked)

    def _same_elements(self, tiles, x, stacked) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views of tiles and x alike: of the whole blocks, then of a short last one."""
        whole, rest = divmod(x.shape[0], self.block_size)
        tiles = tiles.unflatten(1, (stacked, -1)).unflatten(0, (-1, whole + (rest > 0)))
        x = x.unflatten(1, (-1, stacked))
        tail = range(3, x.dim())
        if whole:
            blocks = x[: whole * self.block_size].unflatten(0, (whole, -1))
            yield tiles[:, :whole], blocks.permute(2, 0, 3, 1, *(d + 1 for d in tail))
        if rest:
            last = x[whole * self.block_size :].permute(1, 2, 0, *tail)
            yield tiles[:, whole, :, :rest], last
