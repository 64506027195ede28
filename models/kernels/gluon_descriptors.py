"""Which memory the Gluon kernel may read: TMA descriptors over the kept tokens of a branch.

Token t of a branch of rate r is t = r * row + residue. A descriptor over (batch element, row,
residue, head, column) reads a dilated segment's kept tokens, which are consecutive rows of one
residue, as one box without a copy; rows beyond its bounds are read as 0. Bounds are rectangular,
and n tokens are not unless r divides n: residues below n mod r have one row more than the others.
So each tensor has two descriptors, one for each kind of residue. Both end at or before token n - 1:
no box reads beyond the tensor.
"""

from __future__ import annotations

import torch
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from models.fused_ops import as_operand

# The swizzle has rows of 128 bytes; longer rows are taken in pieces of 128 bytes.
LAYOUT = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=5)


def bounds(n: int, rate: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, residues) of the descriptor for residues below n mod rate, and of that for the others.

    The same twice if there are residues of only one kind.
    """
    rows, rest = divmod(n, rate)
    if rest == 0:
        return (rows, rate), (rows, rate)
    long = rows + 1, rest
    return long, (rows, rate) if rows else long


def readable(x: torch.Tensor) -> torch.Tensor:
    """x (B, N, H, D), copied only where TMA cannot read it as it lies.

    TMA needs addresses and strides that are multiples of 16 bytes, and strides that are not 0.
    """
    x = as_operand(x)
    expanded = any(x.stride(axis) == 0 for axis in range(3) if x.shape[axis] > 1)
    return x.clone(memory_format=torch.contiguous_format) if expanded else x


def descriptors(x: torch.Tensor, rate: int, block: int) -> list[TensorDescriptor]:
    """The two descriptors of x (B, N, H, D), a box of `block` rows each; x as from `readable`."""
    batch, n, heads, dim = x.shape
    x_b, x_n, x_h = x.stride()[:3]
    made = []
    for rows, residues in bounds(n, rate):
        shape = [batch, rows, residues, heads, dim]
        steps = [x_b, rate * x_n, x_n, x_h]
        # A dimension of size 1 never uses its stride; it gets one that TMA can take.
        steps = [step if size > 1 else dim for size, step in zip(shape, steps, strict=False)]
        made.append(TensorDescriptor(x, shape, [*steps, 1], [1, block, 1, 1, dim], LAYOUT))
    return made
