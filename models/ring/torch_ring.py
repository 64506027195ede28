"""The ring attention that PyTorch's `context_parallel` runs, called directly and unchanged.

`torch.distributed.tensor.experimental.context_parallel` shards whole sequences itself, must stay
open until the backward pass is done, and runs its ring through the CUDA ops only: on a CPU, in
torch 2.13, `F.scaled_dot_product_attention` in that context raises when causal and in the backward
pass, and gathers all keys otherwise. So its ring is called here, with the same options and an op
of the device. Source: torch/distributed/tensor/experimental/_context_parallel/_attention.py,
whose names are private; they are the same in torch 2.11 and 2.13.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module

import torch
from torch.distributed import ProcessGroup

from models.errors import UnsupportedBackend, check_choice
from models.fused_ops import as_operand, fused_op, head_dim_multiple

ROTATE_METHODS = ("allgather", "alltoall")

_HOME = "torch.distributed.tensor.experimental._context_parallel._attention"
_NAMES = (
    "_RotateMethod",
    "_cp_options",
    "_templated_ring_attention",
    "_templated_ring_attention_backward",
)
_SEQ_DIM = 2


def ring(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: ProcessGroup,
    is_causal: bool,
    rotate: str,
) -> torch.Tensor:
    """Attention by PyTorch's ring; returns this rank's out (B, n, H, D), differentiable.

    Args:
        q: (B, n, H, D), this rank's shard, see `models.ring.peers.torch_context_parallel`.
        k: (B, n, H, D), this rank's.
        v: (B, n, H, D), this rank's.
        group: the ranks.
        is_causal: causal, in the zigzag order; else the contiguous order.
        rotate: how keys travel, one of ROTATE_METHODS.

    Raises:
        ValueError: `rotate` is not one of ROTATE_METHODS.
    """
    check_choice("rotate", rotate, ROTATE_METHODS)
    operands = (as_operand(x).transpose(1, 2) for x in (q, k, v))
    return _Ring.apply(*operands, group, is_causal, rotate).transpose(1, 2)


def why_not(q: torch.Tensor) -> str | None:
    """Why PyTorch's ring cannot take q (B, n, H, D); None where it can."""
    if not torch.distributed.is_available():
        return "this torch was built without torch.distributed"
    try:
        op = fused_op(q)
    except UnsupportedBackend as reason:
        return str(reason)
    multiple = head_dim_multiple(q)
    if q.shape[3] % multiple:
        return f"head_dim={q.shape[3]}: {op.name} takes multiples of {multiple}"
    try:
        home = import_module(_HOME)
    except ImportError as error:
        return f"torch {torch.__version__} has no module {_HOME}: {error}"
    missing = [name for name in _NAMES if not hasattr(home, name)]
    if missing:
        return f"torch {torch.__version__} has no {', '.join(missing)} in {_HOME}"
    return None


class _Ring(torch.autograd.Function):
    """One rank's part: q, k, v (B, H, n, D) -> out (B, H, n, D)."""

    @staticmethod
    def forward(ctx, q, k, v, group, is_causal, rotate):
        op, scale = fused_op(q), q.shape[3] ** -0.5

        def attend(query, key, value, is_causal):
            return op.forward(query, key, value, is_causal, scale)

        with _options(is_causal, rotate) as home:
            out, lse = home._templated_ring_attention(
                group, _SEQ_DIM, attend, q, k, v, is_causal=is_causal
            )
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = (group, is_causal, rotate, op, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        q, k, v, out, lse = ctx.saved_tensors
        group, is_causal, rotate, op, scale = ctx.options

        def differentiate(query, key, value, out, logsumexp, is_causal, grad_out):
            return op.backward(grad_out, query, key, value, out, logsumexp, is_causal, scale)

        with _options(is_causal, rotate) as home:
            grads = home._templated_ring_attention_backward(
                group, _SEQ_DIM, differentiate, grad_out, "grad_out", q, k, v, out, lse, is_causal
            )
        return *grads[:3], None, None, None


@contextmanager
def _options(is_causal: bool, rotate: str):
    """The ring's module with its global options set, and restored at the end.

    Load balancing, which is the zigzag order, raises unless attention is causal.
    """
    home = import_module(_HOME)
    methods = home._RotateMethod
    wanted = {
        "enable_load_balance": is_causal,
        "rotate_method": methods.ALL_TO_ALL if rotate == "alltoall" else methods.ALL_GATHER,
    }
    before = {name: getattr(home._cp_options, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(home._cp_options, name, value)
        yield home
    finally:
        for name, value in before.items():
            setattr(home._cp_options, name, value)
