"""FlexAttention, PyTorch's compiled attention, dense and on block masks.

Sources: torch/nn/attention/flex_attention.py and torch/_inductor/kernel/flex of torch 2.11 and
2.13. A block size below 128 needs one thing that is private there (`_use_backward_tiles`).
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention, noop_mask

from models.errors import UnsupportedBackend
from models.flex_lists import PaddedMask, up_to_self

# A compiled kernel is for one shape, one block size and one width of the lists.
_KERNELS_PER_PROCESS = 256
# PyTorch's Triton kernels look for the sequence's end only where its length is no multiple of
# 128: a block that does not divide 128 could reach past the end and not be cut.
_BLOCK_SIZES = (16, 32, 64, 128)
# (bytes per element, head_dim up to): queries and keys per forward tile, both of a backward tile,
# backward warps. PyTorch's tables for 128-blocks (torch/_inductor/template_heuristics/
# triton.py), cut smaller where ahead-of-time compiling for sm_80 and sm_90 showed register
# spills; at most 193 KiB of shared memory on sm_90, 133 KiB on sm_80.
_TILES = {
    (2, 64): (64, 64, 64, 4),
    (2, 128): (64, 64, 64, 8),
    (2, 256): (64, 32, 64, 8),
    (4, 64): (64, 32, 16, 4),
    (4, 128): (32, 32, 16, 4),
    (4, 256): (32, 16, 16, 4),
}


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_causal: bool,
    scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense attention.

    Args:
        q: (B, N, H, D).
        k, v: (B, N, Hkv, D).
        is_causal: whether a query attends to keys up to itself only.
        scale: factor on q.k.
        return_lse: whether the LSE is needed.

    Returns:
        out (B, N, H, D), and LSE (B, H, N), natural log, float32, or None; on CUDA differentiable
        in both.

    Raises:
        UnsupportedBackend: where `why_not` has a reason.
    """
    # Without a mask PyTorch uses one block, which on the CPU would hold the N x N scores.
    needs_mask = is_causal or q.device.type == "cpu"
    mask = _dense_mask(q.shape[1], is_causal, q.device) if needs_mask else None
    return _attend(q, k, v, mask, {}, scale, return_lse)


def block_sparse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: PaddedMask,
    is_causal: bool,
    scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Block-sparse attention.

    Args:
        q, k, v, is_causal, scale, return_lse: as of `dense`.
        mask: `models.patterns.BlockMask`, on q's device.

    Returns:
        As `dense`; a query without keys gives 0 and -inf.

    Raises:
        UnsupportedBackend: where `why_not` has a reason.
        ValueError: where the mask does not fit.
    """
    mask.check_fits(q.shape[1], q.shape[2])
    reason = why_not(q, mask.block_size, return_lse=return_lse)
    if reason:
        raise UnsupportedBackend(f"flex: {reason}")
    tiles = _tiles(q, mask.block_size) if q.device.type == "cuda" else {}
    return _attend(q, k, v, mask.to_flex(q.shape[1], is_causal), tiles, scale, return_lse)


def why_not(
    q: torch.Tensor, block_size: int | None = None, *, return_lse: bool = False
) -> str | None:
    """Why FlexAttention cannot compute this.

    Args:
        q: (B, N, H, D).
        block_size: tokens per block of a mask, None for dense attention.
        return_lse: whether the LSE is needed.

    Returns:
        The reason, None if it can.
    """
    if q.device.type not in ("cpu", "cuda"):
        return f"does not run on {q.device.type}"
    if q.dtype == torch.float64:
        return f"takes float32, float16 and bfloat16, not {q.dtype}"
    if q.device.type == "cpu":
        return _why_not_on_cpu(q, block_size, return_lse)
    if not 16 <= q.shape[3] <= 256:
        return f"head_dim={q.shape[3]}: PyTorch has tiles for 16 to 256"
    if block_size is not None and block_size not in _BLOCK_SIZES:
        return f"block_size={block_size}: takes {', '.join(map(str, _BLOCK_SIZES))} on CUDA"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs compute capability 8.0 or later"
    return None


def _why_not_on_cpu(q, block_size, return_lse) -> str | None:
    if q.requires_grad and torch.is_grad_enabled():
        return "has no backward pass on the CPU"
    if return_lse:
        return "gives no LSE on the CPU"
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return "needs a CPU with AVX2"
    if block_size is not None and block_size % 16:
        # With AVX2 PyTorch 2.13's kernel is off by half there (blocks of 24: 0.5 relative).
        return f"block_size={block_size}: takes multiples of 16 on the CPU"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"needs a C++ compiler, found no {compiler}"


def _attend(q, k, v, mask, tiles, scale, return_lse):
    for x in (q, k, v):
        reason = why_not(x, return_lse=return_lse)
        if reason:
            raise UnsupportedBackend(f"flex: {reason}")
    if not torch.is_grad_enabled():
        # On the CPU PyTorch refuses tensors that require gradients even here.
        q, k, v = (x.detach() for x in (q, k, v))
    with ExitStack() as stack:
        limits = ("recompile_limit", "accumulated_recompile_limit")
        stack.enter_context(torch._dynamo.config.patch(dict.fromkeys(limits, _KERNELS_PER_PROCESS)))
        if tiles:
            _use_backward_tiles(stack)
        result = _compiled()(
            *(x.transpose(1, 2) for x in (q, k, v)),
            block_mask=mask,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
            # Without it, a sequence below 128 would run another kernel, with other tiles.
            kernel_options={"BACKEND": "TRITON"} | tiles,
            return_aux=AuxRequest(lse=True) if return_lse else None,
        )
    out, lse = (result[0], result[1].lse) if return_lse else (result, None)
    return out.transpose(1, 2), lse


@functools.cache
def _compiled() -> Callable:
    """`flex_attention`, compiled for each shape; past the limit of kernels it raises.

    Without `fullgraph` it would then run uncompiled and hold the N x N scores.
    """
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _tiles(q, block_size: int) -> dict[str, int]:
    """Triton tiles for blocks below 128: `_TILES`, cut to the block. PyTorch's need 128."""
    if block_size >= 128:
        return {}
    head_dim = min(size for _, size in _TILES if q.shape[3] <= size)
    queries, keys, backward, warps = _TILES[q.element_size(), head_dim]
    backward = min(block_size, backward)
    tiles = {
        "fwd_BLOCK_M": min(block_size, queries),
        "fwd_BLOCK_N": min(block_size, keys),
        "fwd_num_stages": 3,
        "fwd_num_warps": 4,
        "bwd_num_stages": 1 if backward == 16 else 2,
        "bwd_num_warps": warps if backward == 64 else 4,
    }
    return tiles | {f"bwd_BLOCK_{axis}": backward for axis in ("M1", "N1", "M2", "N2")}


def _use_backward_tiles(stack: ExitStack) -> None:
    """Have the backward pass compiled with the tiles that the call names.

    PyTorch drops its default tile where that does not divide the block, before it reads the
    tile asked for (pytorch issue 176025): no 64-block would have a backward pass on Hopper.
    Hence a handler whose default divides every block. It holds for this thread only, so the
    backward pass is compiled here too, not in autograd's thread.
    """
    from torch._functorch import config
    from torch._inductor.virtualized import V

    stack.enter_context(V.set_choices_handler(_smallest_tile_by_default()))
    stack.enter_context(config.patch(force_non_lazy_backward_lowering=True))


@functools.cache
def _smallest_tile_by_default():
    from torch._inductor.choices import InductorChoices
    from torch._inductor.template_heuristics.triton import FlexBwDConfig

    class SmallestTileByDefault(InductorChoices):
        def get_flex_attention_bwd_configs(self, head_dim, dtype, device_type="cuda"):
            return [FlexBwDConfig(16, 16, 16, 16, 1, 4)]

    return SmallestTileByDefault()


@functools.lru_cache(maxsize=8)
def _dense_mask(seq_len: int, is_causal: bool, device: torch.device) -> BlockMask:
    """All blocks, or those up to the diagonal: of 128 tokens, longer where they pass 1024.

    Longer ones must fill a length that is a multiple of 128, for the reason of `_BLOCK_SIZES`.
    """
    size = 128
    while seq_len > 1024 * size and (seq_len % 128 or seq_len % (2 * size) == 0):
        size *= 2
    blocks = -(-seq_len // size)
    row, col = torch.arange(blocks, device=device)[:, None], torch.arange(blocks, device=device)
    kept = col <= row if is_causal else torch.ones_like(col <= row)
    partial = (is_causal & (row == col)) | ((col == blocks - 1) & (seq_len % size != 0))

    def lists(kept):
        order = kept.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return [x.to(torch.int32)[None, None] for x in (kept.sum(dim=1), order)]

    return BlockMask.from_kv_blocks(
        *lists(kept & partial),
        *lists(kept & ~partial),
        BLOCK_SIZE=size,
        mask_mod=up_to_self if is_causal else noop_mask,
        seq_lengths=(seq_len, seq_len),
    )
