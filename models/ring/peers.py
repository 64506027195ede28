"""Other people's ring attention, unchanged, bugs included, to be measured in the same run as ours.

PyTorch's own comes with torch; the packages ring-flash-attn and ring-attention-pytorch may be
installed (envs/peers.txt), and versions other than those named there may behave differently. All
take this rank's shard, of the same length n on every rank, in the peer's token order,
`token_order`: the whole sequence is a multiple of `token_multiple`.
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

from models.errors import UnsupportedBackend, check_choice
from models.fused_ops import fused_op
from models.qkv import check_qkv, check_same_length
from models.ring import torch_ring
from models.ring.peer_adapters import (
    BUCKET,
    ring_attention_pytorch,
    ring_flash_attn,
    torch_context_parallel,
)

Group = dist.ProcessGroup | DeviceMesh | None


@dataclass(frozen=True)
class Peer:
    """One peer, called as `call(q, k, v, group=, is_causal=, **options)`.

    Args:
        call: one of `models.ring.peer_adapters`.
        options: its other arguments.
        causal: its token order when causal.
        not_causal: its token order otherwise; None where it computes causal attention only.
        package: its name on PyPI; None for torch itself.
        modules: what must be installed to import it.
    """

    call: Callable
    options: MappingProxyType
    causal: str
    not_causal: str | None
    package: str | None = None
    modules: tuple[str, ...] = field(default=())


def _peers() -> dict[str, Peer]:
    found = {}
    for rotate in torch_ring.ROTATE_METHODS:
        options = MappingProxyType({"rotate": rotate})
        found[f"torch-context-parallel-{rotate}"] = Peer(
            torch_context_parallel, options, "zigzag", "contiguous"
        )
    # transformers: imported by the package for its adapter to it.
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


def peer_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    peer: str,
    group: Group = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attention by a peer.

    Args:
        q: (B, n, H, D), this rank's shard in the order `token_order(peer, is_causal)`.
        k: (B, n, Hkv, D), this rank's.
        v: (B, n, Hkv, D), this rank's.
        peer: one of PEERS.
        group: a ProcessGroup, a 1-D DeviceMesh, or None for the default group.
        is_causal: causal by position in the whole sequence.

    Returns:
        This rank's out (B, n, H, D).

    Raises:
        ValueError: bad arguments, or torch.distributed is not initialised.
        UnsupportedBackend: with the reason of `why_not`.
    """
    check_choice("peer", peer, PEERS)
    check_qkv(q, k, v)
    check_same_length(q, k)
    reason = why_not(q, peer, is_causal=is_causal, kv_heads=k.shape[2], group=group)
    if reason:
        raise UnsupportedBackend(f"{peer}: {reason}")
    group = _process_group(group)
    if group is None:
        raise ValueError(
            "group=None: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first"
        )
    entry = PEERS[peer]
    return entry.call(q, k, v, group=group, is_causal=bool(is_causal), **entry.options)


def token_order(peer: str, is_causal: bool) -> str:
    """The token order, one of `models.patterns.orders.ORDERS`, in which the peer expects its shard.

    Args:
        peer: one of PEERS.
        is_causal: False, where every order gives the same result, for the peer's own order; its
            causal order where it computes causal attention only.

    Raises:
        ValueError: `peer` is not one of PEERS.
    """
    check_choice("peer", peer, PEERS)
    entry = PEERS[peer]
    return entry.causal if is_causal else entry.not_causal or entry.causal


def token_multiple(peer: str, is_causal: bool, world_size: int) -> int:
    """What the whole sequence's tokens must be a multiple of: no peer takes uneven shards.

    Args:
        peer: one of PEERS.
        is_causal: as in `peer_attention`.
        world_size: ranks of the ring.

    Raises:
        ValueError: `peer` is not one of PEERS.
    """
    return world_size * (2 if token_order(peer, is_causal) == "zigzag" else 1)


def why_not(
    q: torch.Tensor,
    peer: str,
    *,
    is_causal: bool = False,
    kv_heads: int | None = None,
    group: Group = None,
) -> str | None:
    """Why the peer cannot compute this here; None where it can.

    Args:
        q: (B, n, H, D), this rank's; only its shape, dtype and device are read.
        peer: one of PEERS.
        is_causal: as in `peer_attention`.
        kv_heads: heads of k and v; None for as many as q's.
        group: as in `peer_attention`.

    Raises:
        ValueError: `peer` is not one of PEERS.
    """
    check_choice("peer", peer, PEERS)
    entry = PEERS[peer]
    if not is_causal and entry.not_causal is None:
        return "computes causal attention only"
    if token_order(peer, is_causal) == "zigzag" and q.shape[1] % 2:
        return f"{q.shape[1]} tokens per rank: takes two chunks of equal length"
    if entry.call is torch_context_parallel:
        if kv_heads not in (None, q.shape[2]):
            return f"{kv_heads} key heads: takes as many as query heads, {q.shape[2]}"
        return torch_ring.why_not(q)
    if entry.call is ring_flash_attn and q.device.type != "cuda":
        return "needs a CUDA device, as flash-attn, whose kernels it uses, does"
    if not all(map(_installed, entry.modules)):
        return f"the package {entry.package} or one that it needs is not installed (envs/peers.txt)"
    if entry.call is ring_flash_attn:
        return _why_not_flash_attn(q)
    if q.dtype != torch.float32:
        return f"takes float32, not {q.dtype}"
    if kv_heads not in (None, q.shape[2]):
        return f"{kv_heads} key heads: query head h gets key head h % {kv_heads}, not its group's"
    n = q.shape[1]
    if entry.causal == "contiguous" and is_causal and n % min(n, BUCKET):
        return f"{n} tokens per rank: takes multiples of its buckets of {BUCKET}"
    if _process_group(group) is not _process_group(None):
        return "takes the default group only"
    return None


def resolve_backend(
    q: torch.Tensor,
    peer: str,
    *,
    is_causal: bool = False,
    kv_heads: int | None = None,
    group: Group = None,
) -> str:
    """What a call of the peer runs: "torch 2.13.0 (cpu-flash)", "ring-flash-attn 0.1.8".

    Args:
        q, peer, is_causal, kv_heads, group: as in `why_not`.

    Raises:
        ValueError: `peer` is not one of PEERS.
        UnsupportedBackend: with the reason of `why_not`.
    """
    reason = why_not(q, peer, is_causal=is_causal, kv_heads=kv_heads, group=group)
    if reason:
        raise UnsupportedBackend(f"{peer}: {reason}")
    package = PEERS[peer].package
    if package is None:
        return f"torch {torch.__version__} ({fused_op(q).name})"
    return f"{package} {version(package)}"


def _why_not_flash_attn(q) -> str | None:
    # flash-attn-4 is a package of the same name, without this module.
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


def _process_group(group: Group) -> dist.ProcessGroup | None:
    """The ProcessGroup that `group` stands for; None where torch.distributed is not initialised."""
    if isinstance(group, DeviceMesh):
        return group.get_group()
    if group is None and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group
