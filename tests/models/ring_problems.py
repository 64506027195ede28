"""Problems for the tests of ring attention, and the jobs that ranks run on them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from hypothesis import strategies as st

from models.patterns.curves import Grid
from models.patterns.orders import ORDERS
from models.ring import distributed_dilated_attention, ring_attention, shard, unshard
from tests.models.helpers import LAYOUTS, BlockProblem, Problem, random_tensor

KINDS = ("dense", "dilated", "blocks")
WORLD_SIZES = (1, 2, 3, 4, 8)
# Seconds that a rank waits for another in tests that lose a rank.
TIMEOUT_S = 1.5
ALL_ORDERS = (*ORDERS, Grid("hilbert", 7), Grid("row-major"))


@dataclass(frozen=True)
class RingProblem(BlockProblem):
    """One case of ring attention; kind: which pattern is made of the other fields."""

    kind: str = "dense"
    order: str | Grid = "zigzag"
    world_size: int = 4

    @property
    def pattern(self):
        if self.kind == "dense":
            return None
        return (Problem if self.kind == "dilated" else BlockProblem).pattern.fget(self)


@st.composite
def ring_problems(draw, kind):
    """Ragged problems on up to 8 ranks, some with fewer tokens than ranks."""
    kv_heads = draw(st.integers(1, 3))
    branch = st.tuples(st.sampled_from((3, 16, 50, 64, 1000)), st.sampled_from((1, 2, 3, 5)))
    return RingProblem(
        kind=kind,
        order=draw(st.sampled_from(ALL_ORDERS)),
        world_size=draw(st.sampled_from(WORLD_SIZES)),
        batch=draw(st.integers(1, 2)),
        # The longest: on up to two ranks, more rows per shard than a masked piece may have, 64.
        n=draw(st.one_of(st.integers(1, 12), st.integers(13, 100), st.integers(130, 260))),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((1, 5, 8, 16))),
        branches=tuple(draw(st.lists(branch, min_size=1, max_size=3))),
        head_offset=draw(st.sampled_from(("modulo", "block"))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
        block_size=draw(st.sampled_from((1, 4, 16, 64))),
        kept=draw(st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0))),
        per_head=draw(st.booleans()),
    )


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x (B, n, H, D) with other strides; see `helpers.LAYOUTS`."""
    made = random_tensor(x.shape, x.dtype, torch.Generator(), layout).detach()
    return made.copy_(x.detach())


def shards_of(problem: RingProblem, dtype) -> list[torch.Tensor]:
    """This rank's q, k, v, requiring gradients, and both cotangents."""
    rank, size = dist.get_rank(), dist.get_world_size()
    *tensors, grad_lse = replace(problem, layout="packed", grad_layout="packed").tensors(dtype)
    parts = [shard(x, rank, size, problem.order) for x in tensors]
    q, k, v = (laid_out(x, problem.layout).requires_grad_() for x in parts[:3])
    grad_out = laid_out(parts[3], problem.grad_layout)
    return [q, k, v, grad_out, shard(grad_lse, rank, size, problem.order, dim=2)]


def ring(problem: RingProblem, q, k, v, **options):
    """`ring_attention` of a rank's shards, as the problem says."""
    given = {"order": problem.order, "pattern": problem.pattern, "is_causal": problem.is_causal}
    return ring_attention(q, k, v, **(given | options))


def attend(problem: RingProblem, dtype, through_lse=True, **options) -> list[torch.Tensor]:
    """On a rank: its part of out, LSE, dq, dk and dv."""
    q, k, v, grad_out, grad_lse = shards_of(problem, dtype)
    out, lse = ring(problem, q, k, v, return_lse=True, **options)
    outputs, cotangents = ((out, lse), (grad_out, grad_lse)) if through_lse else (out, grad_out)
    grads = torch.autograd.grad(outputs, (q, k, v), cotangents)
    return [x.detach() for x in (out, lse, *grads)]


def attend_all(problems: list[RingProblem], dtype, **options) -> list[list[torch.Tensor]]:
    """On a rank: `attend` of one problem after another."""
    return [attend(problem, dtype, **options) for problem in problems]


def joined(problem: RingProblem, of_ranks: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Whole out, LSE, dq, dk and dv of what `attend` gave on every rank."""
    return [
        unshard([of_rank[place] for of_rank in of_ranks], problem.order, dim=2 if place == 1 else 1)
        for place in range(len(of_ranks[0]))
    ]


@dataclass(frozen=True)
class Inputs:
    """q, k, v of one rank, and options of the call.

    is_gathered: by `distributed_dilated_attention`, in which case a pattern is among the options.
    """

    n: int = 64
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    dtype: torch.dtype = torch.float32
    batch: int = 1
    requires_grad: bool = True
    options: dict = field(default_factory=dict)
    is_gathered: bool = False

    def attend(self):
        """On a rank: its q, and its output."""
        generator = torch.Generator().manual_seed(0)
        rank, size = dist.get_rank(), dist.get_world_size()
        q, k, v = (
            shard(
                torch.randn(self.batch, self.n, heads, self.dim, generator=generator),
                rank,
                size,
                self.options.get("order", "zigzag"),
            )
            .to(self.dtype)
            .requires_grad_(self.requires_grad)
            for heads in (self.heads, self.kv_heads, self.kv_heads)
        )
        attention = distributed_dilated_attention if self.is_gathered else ring_attention
        options = {"order": "zigzag", "timeout": TIMEOUT_S, **self.options}
        return q, attention(q, k, v, **options)
