"""A call of ring attention, agreed on by all ranks, and the op that it works by."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch

from models import kernels
from models.errors import RingError, UnsupportedBackend, check_choice, resolve_scale
from models.fused_ops import fused_op
from models.patterns.block_mask import BlockMask
from models.patterns.orders import positions
from models.ring.agreement import agree, check_lengths, terms
from models.ring.exchange import Alone, Exchange
from models.ring.hops import Eager
from models.ring.plan import RingPlan, plan
from models.ring.request import BACKENDS, Request, process_group, seconds


@dataclass(frozen=True)
class Call:
    """What a rank works by: its exchange with others, the plan of hops, and the op of a piece."""

    exchange: Exchange | Alone
    hops: RingPlan
    op: object
    scale: float

    @property
    def rank(self) -> int:
        return self.exchange.rank


def call(q, k, is_padded: bool, seq_len: int, group: str, timeout: float, request: Request) -> Call:
    """A call whose arguments are good; q: (B, n, H, D), k: (B, n, Hkv, D), this rank's.

    is_padded: whether there is a padding mask. seq_len: tokens of the whole sequence.
    """
    exchange = meet(group, timeout)
    sizes = (seq_len, exchange.world_size, q.shape[2], k.shape[2])
    hops = plan(request.given_pattern(), request.given_order(), *sizes, request.is_causal)
    op = resolve_op(q, request.backend, is_padded)
    return Call(exchange, hops, op, scale_of(request, q))


def negotiate(
    q, k, is_padded: bool, requires_grad: bool, seq_len: int, group: str, timeout: float,
    request: Request,
) -> int:  # fmt: skip
    """The length of the whole sequence, and unless it is given, not 0, the assent of all ranks.

    ValueError where they differ, or this rank's arguments do not fit; UnsupportedBackend;
    RingError where a rank does not answer.
    """
    exchange = meet(group, timeout)
    rank, world_size = exchange.rank, exchange.world_size
    pattern, order = request.given_pattern(), request.given_order()
    if seq_len == 0 and world_size == 1:
        seq_len = q.shape[1]
    elif seq_len == 0:
        try:
            resolve_op(q, request.backend, is_padded)
        except UnsupportedBackend:
            refuse(group, timeout, q)
            raise
        scale = scale_of(request, q)
        own = terms(q, k, is_padded, requires_grad, scale, order, pattern, request)
        seq_len = check_lengths(agree(exchange, own, q.device), order)
    held = len(positions(order, seq_len, rank, world_size))
    if held != q.shape[1]:
        raise ValueError(
            f"seq_len={seq_len}: expected {held} tokens on rank {rank} of {world_size} in the "
            f"order {order!r}, got {q.shape[1]}"
        )
    if isinstance(pattern, BlockMask):
        pattern.check_fits(seq_len, q.shape[2])
    return seq_len


@torch.compiler.disable
def refuse(group: str, timeout, q) -> None:
    """Tell the other ranks that this one's arguments, which q and timeout are of, are bad."""
    try:
        limit = seconds(timeout)
    except ValueError:
        limit = 0.0
    # What is wrong here matters more than who else is lost.
    with suppress(RingError):
        agree(meet(group, limit), None, q.device if isinstance(q, torch.Tensor) else "cpu")


def meet(group: str, timeout: float) -> Exchange | Alone:
    """The exchange with the ranks of a group, by its name; timeout: 0 for the group's own."""
    found = process_group(group)
    return Alone() if found is None else Exchange(found, timeout or None)


def scale_of(request: Request, q: torch.Tensor) -> float:
    """The factor on q.k."""
    return request.scale or resolve_scale(None, q.shape[3])


def resolve_backend(q: torch.Tensor, backend: str, *, is_padded: bool = False) -> str:
    """The backend that a call with `q` runs, with the op beneath it: "sdpa (cpu-flash)"."""
    op = resolve_op(q, backend, is_padded)
    return op.name if op.name in BACKENDS else f"sdpa ({op.name})"


def resolve_op(q: torch.Tensor, backend: str, is_padded: bool = False):
    """The op that does a hop's pieces; UnsupportedBackend where a named backend has none.

    is_padded: whether it is to leave keys out.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "eager":
        return Eager()
    # PyTorch's ops on CUDA round each part to half types before parts are joined.
    trusted = not kernels.why_withdrawn("hop", str(q.dtype), q.shape[3])
    wants_triton = backend == "auto" and q.is_cuda and q.element_size() == 2 and trusted
    if backend == "triton" or wants_triton:
        reason = _why_not_triton(q)
        if reason is None:
            from models.kernels.hop import Triton

            return Triton()
        if backend == "triton":
            raise UnsupportedBackend(f"triton: {reason}")
    try:
        return fused_op(q, is_masked=is_padded)
    except UnsupportedBackend:
        if backend == "sdpa":
            raise
        return Eager()


def _why_not_triton(q: torch.Tensor) -> str | None:
    """Why our Triton op cannot take q (B, N, H, D), or None if it can."""
    if not kernels.HAS_TRITON:
        return kernels.MISSING
    from models.kernels import hop

    return hop.why_not(q)
