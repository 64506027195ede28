"""What all launches have in common: tensors by their strides, and the constants that follow."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import triton.language as tl

from models.kernels.tiles import Tile, padded


def operands(
    kernel,
    tensors: Sequence[torch.Tensor],
    others: Sequence,
    numbers: Sequence,
    tile: Tile,
    is_causal: bool,
    reach: int,
) -> tuple[tuple, dict]:
    """Positional arguments of a launch, and the constants that every kernel has.

    Args:
        kernel: takes `tensors`, `others`, the strides of `tensors`, and `numbers`.
        tensors: q (B, N, H, D), k, v (B, N, Hkv, D) and, of backward kernels, dO (B, N, H, D), of
            one dtype.
        others: the kernel's other pointers, None where it has none there.
        numbers: sizes and scale.
        reach: elements within a tile from its first to its last, at most; indices have 64 bits
            where 32 do not suffice.
    """
    q, k = tensors[:2]
    unit = vector(*tensors)
    constants = {
        "IS_CAUSAL": is_causal,
        "D": q.shape[3],
        "BLOCK_D": padded(q.shape[3]),
        "VECTOR": unit,
        "INDEX": index_type(reach),
        **tile.options(kernel),
    }
    if "GROUP" in kernel.arg_names:
        constants["GROUP"] = q.shape[2] // k.shape[2]
    return (*tensors, *others, *strides(*tensors, unit=unit), *numbers), constants


def index_type(reach: int) -> tl.dtype:
    """The type in which a kernel counts up to `reach` elements."""
    return tl.int32 if reach < 2**31 else tl.int64


def strides(*tensors: torch.Tensor, unit: int = 1) -> list[int]:
    """Strides of (B, N, H, D) tensors as kernels take them: batch, token, head of each.

    unit: elements that they are counted in. A dimension of size 1 has the stride 0: it is never
    multiplied, and must not compile another form.
    """
    return [
        stride // unit if size > 1 else 0
        for x in tensors
        for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
    ]


def vector(*tensors: torch.Tensor) -> int:
    """How many elements, a power of two and 16 bytes at most, a kernel may load at once.

    Every row of every tensor (B, N, H, D), of one dtype, begins at a multiple of as many.
    """
    size = tensors[0].element_size()
    count = 16 // size
    multiples = [stride * size for stride in strides(*tensors)]
    while any(x % (count * size) for x in [*multiples, *(x.data_ptr() for x in tensors)]):
        count //= 2
    return count


def on_device(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context in which kernels are launched on the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
