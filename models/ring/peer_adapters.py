"""How each peer is called: other people's ring attention, unchanged, bugs included.

`models.ring.peers` checks the arguments first. What is said here to be wrong was measured against
the float64 oracle on 2 and 4 ranks (tests/models/test_ring_peers.py).
"""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup

from models.errors import check_choice
from models.ring import torch_ring

# Keys and queries per step of ring-attention-pytorch: its default.
BUCKET = 1024


def torch_context_parallel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: ProcessGroup,
    is_causal: bool,
    rotate: str = "allgather",
) -> torch.Tensor:
    """The ring of PyTorch's `context_parallel` (`models.ring.torch_ring`), causal or not.

    Order: zigzag when causal ("head-tail load balancing"), contiguous otherwise. Differentiable;
    joins in float32 for float64 inputs too. As many key heads as query heads.

    Args:
        q, k, v: (B, n, H, D), this rank's shard.
        group: the ranks.
        is_causal: causal by position in the whole sequence.
        rotate: how keys travel: "allgather", all at once (PyTorch's default), or "alltoall", from
            neighbour to neighbour. Gradients always go from neighbour to neighbour.

    Returns:
        This rank's out (B, n, H, D).
    """
    return torch_ring.ring(q, k, v, group, is_causal, rotate)


def ring_flash_attn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: ProcessGroup,
    is_causal: bool,
    order: str = "contiguous",
) -> torch.Tensor:
    """The package ring-flash-attn (zhuzilin), on CUDA, float16 and bfloat16.

    Differentiable. Its contiguous function rounds dq to bfloat16 in every dtype.

    Args:
        q: (B, n, H, D), this rank's shard.
        k, v: (B, n, Hkv, D), this rank's.
        group: the ranks.
        is_causal: causal by position in the whole sequence.
        order: one function of the package each: "contiguous", causal or not; "zigzag" and
            "striped", causal only.

    Returns:
        This rank's out (B, n, H, D).
    """
    check_choice("order", order, ("contiguous", "zigzag", "striped"))
    import ring_flash_attn as package

    function = {
        "contiguous": package.ring_flash_attn_func,
        "zigzag": package.zigzag_ring_flash_attn_func,
        "striped": package.stripe_flash_attn_func,
    }[order]
    return function(q, k, v, causal=is_causal, group=group)


def ring_attention_pytorch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: ProcessGroup,
    is_causal: bool,
    order: str = "contiguous",
) -> torch.Tensor:
    """The PyTorch function of the package ring-attention-pytorch (lucidrains), on any device.

    Its Triton function is left out: without the package triton-nightly it ends the process.
    Differentiable, with a correct dq; dk and dv are wrong, as 0.5.20 returns its pair of receive
    buffers in place of dk, dv. float32; as many key heads as query heads, since it groups heads
    in another order; the default group only.

    Args:
        q, k, v: (B, n, H, D), this rank's shard.
        group: the default group, the only one that it takes.
        is_causal: causal by position in the whole sequence.
        order: "contiguous" or "striped", causal or not. It stripes by bucket, which is the order
            "striped" where a shard is one bucket; so it is, and memory holds scores (B, H, n, n).

    Returns:
        This rank's out (B, n, H, D).
    """
    check_choice("order", order, ("contiguous", "striped"))
    from ring_attention_pytorch import ring_flash_attn as function

    striped = order == "striped"
    return function(
        q, k, v, causal=is_causal, ring_reduce_col=True, striped_ring_attn=striped,
        bucket_size=q.shape[1] if striped else BUCKET,
    )  # fmt: skip
