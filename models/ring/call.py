"""A call of ring attention on one rank: checked with all ranks, and the backend that it runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch

from models import kernels
from models.errors import RingError, UnsupportedBackend, check_choice
from models.fused_ops import fused_op
from models.patterns.block_mask import BlockMask
from models.patterns.orders import positions
from models.ring.agreement import check_lengths, encode_arguments, gather_arguments
from models.ring.exchange import Exchange, SingleRankExchange
from models.ring.hops import Eager
from models.ring.options import BACKENDS, RingOptions, checked_timeout, process_group
from models.ring.plan import RingPlan, ring_plan


@dataclass(frozen=True)
class Call:
    """What one rank needs to run a pass.

    Args:
        exchange: messages with the other ranks.
        plan: all hops of the ring.
        op: computes a piece, one of `models.fused_ops`, `models.kernels.hop.Triton` or `Eager`.
        scale: factor on q.k.
    """

    exchange: Exchange | SingleRankExchange
    plan: RingPlan
    op: object
    scale: float

    @property
    def rank(self) -> int:
        """This rank in the group."""
        return self.exchange.rank


def make_call(
    q: torch.Tensor,
    k: torch.Tensor,
    is_padded: bool,
    seq_len: int,
    group: str,
    timeout: float,
    options: RingOptions,
) -> Call:
    """The `Call` of one rank, for arguments that are checked.

    Args:
        q: (B, n, H, D), this rank's.
        k: (B, n, Hkv, D), this rank's.
        is_padded: whether there is a padding mask.
        seq_len: tokens of the whole sequence.
        group: its name, "" for the default group.
        timeout: seconds that a rank waits for another; 0 for the group's own limit.
        options: the other arguments.

    Raises:
        UnsupportedBackend: the named backend cannot take q.
        RingError: an earlier call lost a rank of the group.
    """
    exchange = open_exchange(group, timeout)
    sizes = (seq_len, exchange.world_size, q.shape[2], k.shape[2])
    plan = ring_plan(options.given_pattern(), options.given_order(), *sizes, options.is_causal)
    return Call(exchange, plan, resolve_op(q, options.backend, is_padded), options.scale)


def agreed_seq_len(
    q: torch.Tensor,
    k: torch.Tensor,
    is_padded: bool,
    requires_grad: bool,
    seq_len: int,
    group: str,
    timeout: float,
    options: RingOptions,
) -> int:
    """The length of the whole sequence; unless it is given, all ranks compare their arguments.

    Args:
        q: (B, n, H, D), this rank's.
        k: (B, n, Hkv, D), this rank's.
        is_padded: whether there is a padding mask.
        requires_grad: whether q, k or v requires gradients.
        seq_len: tokens of the whole sequence; 0 where it is not given.
        group: its name, "" for the default group.
        timeout: seconds that a rank waits for another; 0 for the group's own limit.
        options: the other arguments.

    Raises:
        ValueError: the ranks' arguments differ, or this rank's do not fit the sequence.
        UnsupportedBackend: the named backend cannot take q.
        RingError: a rank does not answer.
    """
    exchange = open_exchange(group, timeout)
    rank, world_size = exchange.rank, exchange.world_size
    pattern, order = options.given_pattern(), options.given_order()
    if seq_len == 0 and world_size == 1:
        seq_len = q.shape[1]
    elif seq_len == 0:
        try:
            resolve_op(q, options.backend, is_padded)
        except UnsupportedBackend:
            report_bad_arguments(group, timeout, q)
            raise
        own = encode_arguments(q, k, is_padded, requires_grad, options)
        seq_len = check_lengths(gather_arguments(exchange, own, q.device), order)
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
def report_bad_arguments(group: str, timeout: object, q: object) -> None:
    """Send the other ranks that this rank's arguments are bad, so that they raise too.

    Args:
        group: its name, "" for the default group.
        timeout: the caller's, bad or not.
        q: the caller's, bad or not; messages are sent from its device.
    """
    try:
        limit = checked_timeout(timeout)
    except ValueError:
        limit = 0.0
    # The caller raises what is wrong with the arguments, which matters more than a lost rank.
    with suppress(RingError):
        device = q.device if isinstance(q, torch.Tensor) else "cpu"
        gather_arguments(open_exchange(group, limit), None, device)


def open_exchange(group: str, timeout: float) -> Exchange | SingleRankExchange:
    """The exchange with the ranks of a group.

    Args:
        group: its name, "" for the default group.
        timeout: seconds that a rank waits for another; 0 for the group's own limit.

    Raises:
        ValueError: see `models.ring.options.process_group`.
        RingError: an earlier call lost a rank of the group.
    """
    found = process_group(group)
    return SingleRankExchange() if found is None else Exchange(found, timeout or None)


def resolve_backend(q: torch.Tensor, backend: str, *, is_padded: bool = False) -> str:
    """The backend that a call with `q` runs, with the op that it runs: "sdpa (cpu-flash)".

    Args:
        q: (B, n, H, D).
        backend: one of BACKENDS.
        is_padded: whether there is a padding mask.

    Raises:
        ValueError: not one of BACKENDS.
        UnsupportedBackend: the named backend cannot take q.
    """
    op = resolve_op(q, backend, is_padded)
    return op.name if op.name in BACKENDS else f"sdpa ({op.name})"


def resolve_op(q: torch.Tensor, backend: str, is_padded: bool = False) -> object:
    """The op that computes the pieces of a hop, with the interface of `models.fused_ops`.

    Args:
        q: (B, n, H, D); only its shape, dtype and device are read.
        backend: one of BACKENDS.
        is_padded: whether there is a padding mask.

    Raises:
        ValueError: not one of BACKENDS.
        UnsupportedBackend: the named backend cannot take q.
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
