"""Query-key pairs and useful FLOPs of a case, in closed form: without torch and without a mask.

Held by the tests to `experiments.workload`, which counts the tensors and lists themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

from experiments.case import Case
from experiments.training.case import TrainingCase
from experiments.training.flops import matrix_flops
from experiments.training.recipes import RECIPES
from models.registry import VARIANTS

# As `experiments.workload.BACKWARD_OVER_FORWARD` has it.
ATTENTION_BACKWARD, PROJECTION_BACKWARD = 2.5, 2.0
# Of the replica of block sums, in blocks: `models.as_published.block_sums.DISTANCES`.
_DISTANCES = (0, 1, 2, 4)


def useful_flops(case: Case) -> float:
    """FLOPs of one pass, as `experiments.workload.Workload.useful_flops` counts them.

    Exact where segments, not blocks, say who attends to whom; of a simulated ring that of the
    busiest rank, of blocks over ranks and of curves within a few percent. Of a training those of a
    step.
    """
    if isinstance(case, TrainingCase):
        return RECIPES[case.recipe].layers * attention_flops(case) + matrix_flops(case)
    return attention_flops(case) + projection_flops(case)


def attention_flops(case: Case) -> float:
    """Those of the query-key pairs: 4 D each, 2.5 times as many more where there is a backward."""
    factor = 1 + ATTENTION_BACKWARD * (case.pass_ == "forward_backward")
    return factor * 4 * case.head_dim * case.batch * pairs(case)


def projection_flops(case: Case) -> float:
    """Those of a module's four projections; 0 of a function."""
    if not VARIANTS[case.variant].multihead:
        return 0.0
    factor = 1 + PROJECTION_BACKWARD * (case.pass_ == "forward_backward")
    width, kv_width = case.heads * case.head_dim, case.kv_heads * case.head_dim
    weights = width * (2 * width + 2 * kv_width)
    return factor * 2 * case.batch * case.seq_len * weights


def pairs(case: Case) -> float:
    """Query-key pairs over all heads of one batch element; of a simulated ring, of one rank."""
    if case.simulated:
        return whole_pairs(case) / case.world_size * _busiest_share(case)
    return whole_pairs(case)


def whole_pairs(case: Case) -> float:
    """Those of the whole sequence, whoever computes them."""
    variant = VARIANTS[case.variant]
    replica = variant.module.rpartition(".")[2] if variant.replica_of else None
    if replica == "dense_ring":
        return case.heads * case.seq_len**2
    if replica == "over_heads":
        return _over_heads(case)
    if replica == "block_sums":
        blocks = case.seq_len // case.block_size
        kept = sum((1 + (d > 0)) * max(0, blocks - d) for d in _DISTANCES)
        return case.heads * kept * case.block_size**2
    if variant.takes == "blocks":
        return case.heads * block_pairs(
            case.seq_len, case.block_size, case.sparsity, case.is_causal
        )
    if variant.takes == "branches":
        return sum(_branch_pairs(case, *branch) for branch in _branches(case))
    return dense_pairs(case)


def dense_pairs(case: Case) -> int:
    """All pairs of the sequence that may be attended to."""
    n = case.seq_len
    return case.heads * (n * (n + 1) // 2 if case.is_causal else n * n)


def _branches(case: Case):
    """(segment length, dilation rate, {offset: heads}) of each branch."""
    is_partition = VARIANTS[case.variant].pattern_class == "HeadPartition"
    base, extra = divmod(case.heads, len(case.segment_lengths))
    for i, (w, r) in enumerate(zip(case.segment_lengths, case.dilation_rates, strict=True)):
        if is_partition:
            yield w, r, {i % r: base + (i < extra)}
        elif getattr(case, "head_offset", "modulo") == "block":
            size = -(-case.heads // r)
            yield w, r, dict(Counter(head // size for head in range(case.heads)))
        else:
            yield w, r, {o: len(range(o, case.heads, r)) for o in range(min(r, case.heads))}


def _branch_pairs(case: Case, w: int, r: int, heads_at: dict[int, int]) -> int:
    full, rest = divmod(case.seq_len, w)
    total = 0
    for offset, heads in heads_at.items():
        for segments, length in ((full, w), (1, rest)):
            kept = max(0, -(-(length - offset) // r))
            held = kept * (kept + 1) // 2 if case.is_causal else kept * kept
            total += segments * heads * held
    return total


def _over_heads(case: Case) -> int:
    """Pairs of heads over all kept positions."""
    total = 0
    base, extra = divmod(case.heads, len(case.segment_lengths))
    for i, (w, r) in enumerate(zip(case.segment_lengths, case.dilation_rates, strict=True)):
        size = base + (i < extra)
        positions = case.seq_len // w * len(range(i % r, w, r))
        total += positions * (size * (size + 1) // 2 if case.is_causal else size * size)
    return total


@cache
def block_pairs(seq_len: int, block_size: int, sparsity: float, is_causal: bool) -> int:
    """Pairs per head; a row of blocks keeps `max(1, round((1 - sparsity) * allowed))` of them.

    Exact where block_size divides seq_len; else the last blocks are counted whole.
    """
    blocks = -(-seq_len // block_size)
    kept = range(1, blocks + 1) if is_causal else (blocks,)
    kept = sum(max(1, round((1 - sparsity) * allowed)) for allowed in kept)
    if not is_causal:
        return kept * blocks * block_size**2
    # Of the block on the diagonal, those up to it.
    return kept * block_size**2 - blocks * (block_size * (block_size - 1) // 2)


def _busiest_share(case: Case) -> float:
    """Pairs of the rank with most of them over an equal share."""
    order, ranks = VARIANTS[case.variant].shard_order, case.world_size
    if VARIANTS[case.variant].takes == "branches":
        return _busiest_branches(case) * ranks / whole_pairs(case)
    if not case.is_causal or order in ("zigzag", "striped"):
        return 1.0
    if order in ("contiguous", "snake"):
        return 2 - 1 / ranks
    # Along a curve the last rank holds part of the square's last rows: a Z halves the rows first,
    # Hilbert's curve the columns.
    halvings = math.log2(ranks) / 2
    return 2 - 2.0 ** -(math.floor(halvings) if order == "hilbert" else math.ceil(halvings))


def _busiest_branches(case: Case) -> int:
    """Pairs of the busiest of contiguous shards, over all heads."""
    bounds = [case.seq_len * rank // case.world_size for rank in range(case.world_size + 1)]
    return max(
        sum(
            heads * _pairs_between(case, w, r, offset, start, stop)
            for w, r, heads_at in _branches(case)
            for offset, heads in heads_at.items()
        )
        for start, stop in zip(bounds, bounds[1:], strict=False)
    )


def _pairs_between(case: Case, w: int, r: int, offset: int, start: int, stop: int) -> int:
    """Pairs of a head whose queries lie from `start` to before `stop`."""
    total = 0
    for segment in range(start // w * w, stop, w):
        end = min(segment + w, case.seq_len)
        first, last = (
            max(0, -(-(place - segment - offset) // r))
            for place in (max(start, segment), min(stop, end))
        )
        if case.is_causal:
            total += last * (last + 1) // 2 - first * (first + 1) // 2
        else:
            total += (last - first) * max(0, -(-(end - segment - offset) // r))
    return total
