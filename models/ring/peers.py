"""Other people's ring attention, as it is, bugs and all, to be measured in the run that ours is.

PyTorch's own comes with torch; the packages ring-flash-attn and ring-attention-pytorch are found
or not (envs/peers.txt), and versions other than those named there may behave otherwise. All take
this rank's shard, (B, n, H, D), of the same length n on every rank, in the peer's token order,
`token_order`: the whole sequence is a multiple of `token_multiple`. What is said below to be
wrong was measured against the float64 oracle on 2 and 4 ranks (tests/models/test_ring_peers.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.errors import UnsupportedBackend, check_choice, check_qkv, check_same_length
from models.fused_ops import fused_op
from models.ring import peer_torch

# Keys and queries that one step of ring-attention-pytorch takes: its own default.
BUCKET = 1024


def torch_context_parallel(q, k, v, *, group=None, is_causal=False, rotate="allgather"):
    """The ring of PyTorch's `context_parallel` (`models.ring.peer_torch`), causal or not.

    Order: zigzag when causal ("head-tail load balancing"); contiguous otherwise. Differentiable;
    merges in float32, float64 inputs too. rotate: how keys travel, "allgather" (all at once,
    PyTorch's default) or "alltoall" (from neighbour to neighbour); gradients always do the latter.
    As many key heads as query heads.
    """
    name = f"torch-context-parallel-{rotate}"
    _check(q, k, v, name, is_causal, group)
    return peer_torch.ring(q, k, v, _process_group(group), bool(is_causal), rotate)


def ring_flash_attn(q, k, v, *, group=None, is_causal=False, order="contiguous"):
    """The package ring-flash-attn (zhuzilin), on CUDA, float16 and bfloat16.

    Order: `order`, by its function: "contiguous", causal or not; "zigzag" and "striped", causal
    only. Differentiable. Contiguous rounds dq to bfloat16 whatever the dtype.
    """
    check_choice("order", order, ("contiguous", "zigzag", "striped"))
    _check(q, k, v, "ring-flash-attn" + _suffix(order), is_causal, group)
    import ring_flash_attn as package

    function = {
        "contiguous": package.ring_flash_attn_func,
        "zigzag": package.zigzag_ring_flash_attn_func,
        "striped": package.stripe_flash_attn_func,
    }[order]
    return function(q, k, v, causal=bool(is_causal), group=_process_group(group))


def ring_attention_pytorch(q, k, v, *, group=None, is_causal=False, order="contiguous"):
    """The package ring-attention-pytorch (lucidrains), any device, its PyTorch function.

    Order: `order`, "contiguous" or "striped", causal or not. It stripes by bucket, which is the
    order "striped" where a shard is one bucket, so one it is, and the scores (B, H, n, n) are
    held. Its Triton function is left out: without the package triton-nightly it ends the process.
    Differentiable, with a right dq; dk and dv are wrong, as 0.5.20 takes the pair of buffers that
    a pass returns for the pair dk, dv. float32; as many key heads as query heads, since it groups
    them its own way; the default group only.
    """
    check_choice("order", order, ("contiguous", "striped"))
    _check(q, k, v, "ring-attention-pytorch" + _suffix(order), is_causal, group)
    from ring_attention_pytorch import ring_flash_attn as function

    striped = order == "striped"
    return function(
        q, k, v, causal=bool(is_causal), ring_reduce_col=True, striped_ring_attn=striped,
        bucket_size=q.shape[1] if striped else BUCKET,
    )  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """One peer: `call(q, k, v, group=, is_causal=, **options)`; its order when causal and not.

    not_causal: None where it does causal attention only. package: its name on PyPI, None for
    torch itself; modules: what must be there to import it.
    """

    call: Callable
    options: MappingProxyType
    causal: str
    not_causal: str | None
    package: str | None = None
    modules: tuple[str, ...] = field(default=())


def _peers() -> dict[str, Peer]:
    found = {}
    for rotate in peer_torch.ROTATE_METHODS:
        options = MappingProxyType({"rotate": rotate})
        found[f"torch-context-parallel-{rotate}"] = Peer(
            torch_context_parallel, options, "zigzag", "contiguous"
        )
    # transformers: imported by the package, for an adapter of its own.
    needs = ("ring_flash_attn", "transformers")
    for order in ("contiguous", "zigzag", "striped"):
        options = MappingProxyType({"order": order})
        found["ring-flash-attn" + _suffix(order)] = Peer(
            ring_flash_attn, options, order, order if order == "contiguous" else None,
            "ring-flash-attn", needs,
        )  # fmt: skip
    needs = ("ring_attention_pytorch", "einops", "beartype", "jaxtyping")
    for order in ("contiguous", "striped"):
        found["ring-attention-pytorch" + _suffix(order)] = Peer(
            ring_attention_pytorch, MappingProxyType({"order": order}), order, order,
            "ring-attention-pytorch", needs,
        )  # fmt: skip
    return found


def _suffix(order: str) -> str:
    return "" if order == "contiguous" else f"-{order}"


PEERS = MappingProxyType(_peers())


def peer_attention(q, k, v, *, peer: str, group=None, is_causal=False):
    """Attention by the peer of that name, one of PEERS.

    q: (B, n, H, D), k, v: (B, n, Hkv, D), this rank's shard in `token_order(peer, is_causal)`.
    group: a ProcessGroup, a 1-D DeviceMesh or None for the default group. Returns this rank's
    out (B, n, H, D). ValueError on bad arguments; UnsupportedBackend with the reason of `why_not`.
    """
    check_choice("peer", peer, PEERS)
    entry = PEERS[peer]
    return entry.call(q, k, v, group=group, is_causal=is_causal, **entry.options)


def token_order(peer: str, is_causal: bool) -> str:
    """The order, one of `models.patterns.orders.ORDERS`, in which the peer expects its shard.

    Without a mask every order gives the same; this is then the one to cut in all the same. For a
    peer that does causal attention only, its order there.
    """
    check_choice("peer", peer, PEERS)
    entry = PEERS[peer]
    return entry.causal if is_causal else entry.not_causal or entry.causal


def token_multiple(peer: str, is_causal: bool, world_size: int) -> int:
    """Tokens of the whole sequence must be a multiple of this, as no peer takes uneven shards."""
    return world_size * (2 if token_order(peer, is_causal) == "zigzag" else 1)


def why_not(q, peer: str, *, is_causal=False, kv_heads: int | None = None, group=None):
    """Why the peer cannot take this rank's q (B, n, H, D) here, else None.

    kv_heads: heads of k and v, None for as many as q's. Reads the shape, dtype and device of q.
    """
    check_choice("peer", peer, PEERS)
    entry = PEERS[peer]
    if not is_causal and entry.not_causal is None:
        return "does causal attention only"
    if token_order(peer, is_causal) == "zigzag" and q.shape[1] % 2:
        return f"{q.shape[1]} tokens on a rank: takes two chunks of equal length"
    if entry.call is torch_context_parallel:
        if kv_heads not in (None, q.shape[2]):
            return f"{kv_heads} key heads: takes as many as query heads, {q.shape[2]}"
        return peer_torch.why_not(q)
    if entry.call is ring_flash_attn and q.device.type != "cuda":
        return "needs a CUDA device, as its kernels, flash-attn, do"
    if not all(map(_installed, entry.modules)):
        return f"the package {entry.package} or one that it needs is not installed (envs/peers.txt)"
    if entry.call is ring_flash_attn:
        return _why_not_flash_attn(q)
    if q.dtype != torch.float32:
        return f"takes float32, not {q.dtype}"
    if kv_heads not in (None, q.shape[2]):
        return (
            f"{kv_heads} key heads: gives query head h the key head h % {kv_heads}, not its group's"
        )
    n = q.shape[1]
    if entry.causal == "contiguous" and is_causal and n % min(n, BUCKET):
        return f"{n} tokens on a rank: takes multiples of its buckets of {BUCKET}"
    if _process_group(group) is not _process_group(None):
        return "takes the default group only"
    return None


def resolve_backend(q, peer: str, *, is_causal=False, kv_heads=None, group=None) -> str:
    """What a call of the peer runs: "torch 2.13.0 (cpu-flash)", "ring-flash-attn 0.1.8".

    UnsupportedBackend where `why_not` has a reason.
    """
    reason = why_not(q, peer, is_causal=is_causal, kv_heads=kv_heads, group=group)
    if reason:
        raise UnsupportedBackend(f"{peer}: {reason}")
    package = PEERS[peer].package
    if package is None:
        return f"torch {torch.__version__} ({fused_op(q).name})"
    return f"{package} {version(package)}"


def _why_not_flash_attn(q) -> str | None:
    # flash-attn-4 is in the same package, without this module.
    if not _installed("flash_attn.flash_attn_interface"):
        return "the package flash-attn is not installed (envs/cuda.txt)"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {q.dtype}"
    if torch.cuda.get_device_capability(q.device)[0] < 8:
        return "needs compute capability 8.0 or later"
    return f"head_dim={q.shape[3]}: takes up to 256" if q.shape[3] > 256 else None


def _installed(module: str) -> bool:
    package = module.partition(".")[0]
    found = importlib.util.find_spec
    return found(package) is not None and found(module) is not None


def _check(q, k, v, peer: str, is_causal, group) -> None:
    check_choice("peer", peer, PEERS)
    check_qkv(q, k, v)
    check_same_length(q, k)
    reason = why_not(q, peer, is_causal=is_causal, kv_heads=k.shape[2], group=group)
    if reason:
        raise UnsupportedBackend(f"{peer}: {reason}")
    if _process_group(group) is None:
        raise ValueError(
            "group=None: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first"
        )


def _process_group(group):
    """The ProcessGroup meant by `group`; None where torch.distributed is not initialised."""
    if isinstance(group, DeviceMesh):
        return group.get_group()
    if group is None and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group
