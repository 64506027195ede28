"""Problems, tensors in awkward memory layouts, and the error measure that the tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import example
from hypothesis import strategies as st

import models.dilated  # noqa: F401 (its kernels are passes of the op)
from models.dilated_op import dilated
from models.patterns import BlockMask, DilatedBranches

DILATED_BACKENDS = ("gather", "sdpa")
LAYOUTS = ("packed", "fused", "heads_first", "tokens_first", "every_second")


def unpacked(statistics, n):
    """LSE and delta (B, H, n) of packed row statistics."""
    return statistics.view(torch.float32).unflatten(-1, (-1, 2))[:, :, :n].unbind(-1)


def attend_branches(
    q, k, v, pattern, is_causal, scale, backend="triton", key_padding_mask=None, document_ids=None
):
    """out and LSE of the op beneath `dilated_attention`, which is not asked whether it can."""
    lists = (list(pattern.segment_lengths), list(pattern.dilation_rates), pattern.head_offset)
    return dilated(q, k, v, key_padding_mask, document_ids, *lists, is_causal, scale, backend)


def in_each_dtype(dtypes, *cases):
    """Explicit examples of a test of `dtype`: every case, a dict, in every dtype."""

    def add(test):
        for case in cases:
            for dtype in dtypes:
                test = example(**case, dtype=dtype)(test)
        return test

    return add


def relative_rms(got, want) -> float:
    """Root-mean-square error over root-mean-square reference; lists count as one long vector.

    Gradients are taken together: where a query sees one key only, its own
    gradient is exactly zero and has no scale of its own.
    """
    got, want = ([x] if isinstance(x, torch.Tensor) else x for x in (got, want))
    error = sum((a.double() - b.double()).square().sum() for a, b in zip(got, want, strict=True))
    return (error / sum(b.double().square().sum() for b in want)).sqrt().item()


def rounding_floor(dtype) -> float:
    """Error that no bound asks to beat: at tiny shapes dense attention itself is nearly exact."""
    units = 1 if dtype in (torch.float16, torch.bfloat16) else 2
    return units * torch.finfo(dtype).eps


def random_tensor(shape, dtype, generator, layout="packed"):
    """Standard normal (B, N, H, D), requiring gradients, laid out in memory as asked."""

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    batch, n, heads, dim = shape
    x = {
        "packed": lambda: normal(batch, n, heads, dim),
        "fused": lambda: normal(batch, n, heads + 3, dim)[:, :, 2 : 2 + heads],
        "heads_first": lambda: normal(batch, heads, n, dim).transpose(1, 2),
        "tokens_first": lambda: normal(n, batch, heads, dim).transpose(0, 1),
        "every_second": lambda: normal(batch, n, heads, 2 * dim)[..., ::2],
    }[layout]()
    return x.detach().requires_grad_()


@dataclass(frozen=True)
class Problem:
    """One drawn case of self-attention; `tensors` makes its q, k, v and both cotangents."""

    batch: int = 1
    n: int = 16
    heads: int = 4
    kv_heads: int = 4
    dim: int = 8
    branches: tuple[tuple[int, int], ...] = ((8, 1), (16, 2))
    head_offset: str = "modulo"
    is_causal: bool = False
    layout: str = "packed"
    grad_layout: str = "packed"
    seed: int = 0

    @property
    def lists(self):
        """Segment lengths and dilation rates."""
        return [w for w, _ in self.branches], [r for _, r in self.branches]

    @property
    def pattern(self):
        return DilatedBranches(*self.lists, self.head_offset)

    def tensors(self, dtype):
        generator = torch.Generator().manual_seed(self.seed)
        q_shape = (self.batch, self.n, self.heads, self.dim)
        kv_shape = (self.batch, self.n, self.kv_heads, self.dim)
        q, k, v = (
            random_tensor(shape, dtype, generator, self.layout)
            for shape in (q_shape, kv_shape, kv_shape)
        )
        grad_out = random_tensor(q_shape, dtype, generator, self.grad_layout).detach()
        grad_lse = torch.randn(self.batch, self.heads, self.n, generator=generator)
        accumulator = torch.promote_types(dtype, torch.float32)
        return q, k, v, grad_out, grad_lse.to(accumulator)


@st.composite
def problems(draw):
    """Ragged problems: w beyond N, r not dividing w nor H, grouped queries, any layout."""
    kv_heads = draw(st.integers(1, 4))
    branch = st.tuples(st.integers(1, 100), st.integers(1, 6))
    return Problem(
        batch=draw(st.integers(1, 3)),
        n=draw(st.integers(1, 90)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((1, 5, 8, 16))),
        branches=tuple(draw(st.lists(branch, min_size=1, max_size=3))),
        head_offset=draw(st.sampled_from(("modulo", "block"))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


@dataclass(frozen=True)
class BlockProblem(Problem):
    """One drawn case of block-sparse attention: a random mask, of each head or of all."""

    block_size: int = 8
    kept: float = 0.5
    per_head: bool = False

    @property
    def pattern(self):
        blocks = -(-self.n // self.block_size)
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.heads if self.per_head else 1, blocks, blocks)
        return BlockMask.from_dense(
            torch.rand(shape, generator=generator) < self.kept, self.block_size
        )


@st.composite
def block_problems(draw):
    """Ragged problems, masks from empty to full, with rows of any length, grouped queries."""
    kv_heads = draw(st.integers(1, 3))
    return BlockProblem(
        batch=draw(st.integers(1, 2)),
        n=draw(st.integers(1, 90)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((1, 5, 8, 16))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
        block_size=draw(st.sampled_from((1, 4, 8, 16, 64))),
        kept=draw(st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0))),
        per_head=draw(st.booleans()),
    )
