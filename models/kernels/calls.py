"""One call of our kernels as small data, and the tensors and function that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from models import patterns
from models.patterns import block_pairs

if TYPE_CHECKING:
    from models.kernels.tiles import Tile

# With a table of tiles; "gluon" has one tile only.
TABLES = ("dilated", "block_sparse", "hop")
CALLED = (*TABLES, "gluon")
KERNELS = ("forward", "backward_q", "backward_kv", "forward_pair", "backward")


@dataclass(frozen=True)
class Call:
    """A call of the op of `table`, forward or backward, on (batch, tokens, heads, head_dim).

    kernel: "forward", or "backward" for all kernels of that pass; "backward_q" and "backward_kv"
    make the same call and mean that kernel of it. "forward_pair", of block_sparse, is the forward
    pass with two query blocks per program. dtype: name of a torch dtype. dilated and gluon take
    segment_lengths and dilation_rates, dilated also tf32; block_sparse takes a mask by `builder` of
    `models.patterns`, sparsity and block_size (16, 32 or 64). tile: of `kernel`, in place of the
    table's. ValueError on anything else.
    """

    table: str
    kernel: str
    dtype: str
    head_dim: int
    tokens: int
    heads: int
    kv_heads: int
    batch: int = 1
    is_causal: bool = True
    segment_lengths: tuple[int, ...] = ()
    dilation_rates: tuple[int, ...] = ()
    head_offset: str = "modulo"
    tf32: bool = False
    builder: str | None = None
    sparsity: float | None = None
    block_size: int | None = None
    tile: Tile | None = None

    def __post_init__(self):
        for name, value, choices in (
            ("table", self.table, CALLED),
            ("kernel", self.kernel, KERNELS),
            ("dtype", self.dtype, ("float16", "bfloat16", "float32")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")
        if self.tile is not None and self.kernel == "backward":
            raise ValueError("tile: expected kernel to name one, not all of the backward pass")
        if (self.table in ("dilated", "gluon")) != bool(self.segment_lengths):
            raise ValueError(f"segment_lengths={self.segment_lengths}: goes with dilated attention")
        if self.table == "gluon" and (self.tile is not None or self.tf32):
            raise ValueError(f"table='gluon': expected no tile and no tf32 in {self}")
        if self.kernel == "forward_pair" and self.table != "block_sparse":
            raise ValueError(f"table={self.table!r}: expected 'block_sparse' for 'forward_pair'")
        if (self.table == "block_sparse") != (self.block_size is not None):
            raise ValueError(f"block_size={self.block_size}: goes with table 'block_sparse'")

    @property
    def launches(self) -> tuple[str, ...] | None:
        """Names of the kernel functions that the call is made for, None for all it launches."""
        return None if self.kernel == "backward" else (self.kernel,)


def problem(
    call: Call, device: str, *, values: bool = True
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """The function that `call` stands for; a backward pass runs its forward here, once.

    Args:
        call: which.
        device: where the tensors are.
        values: whether inputs are drawn (standard normal, seeded); otherwise their memory is not
            touched.

    Returns:
        A function of no arguments that runs one pass and returns out and LSE, or dQ, dK and dV.
    """
    from models.kernels import dilated, hop

    dtype = getattr(torch, call.dtype)
    generator = torch.Generator(device).manual_seed(0) if values else None

    def tensor(heads: int) -> torch.Tensor:
        shape = (call.batch, call.tokens, heads, call.head_dim)
        if generator is None:
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    q, k, v, grad = (tensor(n) for n in (call.heads, call.kv_heads, call.kv_heads, call.heads))
    scale, backward = call.head_dim**-0.5, call.kernel.startswith("backward")
    if call.table == "hop":
        op = hop.Triton()
        q, k, v, grad = (x.transpose(1, 2) for x in (q, k, v, grad))
        if not backward:
            return lambda: op.forward(q, k, v, call.is_causal, scale)
        out, lse = op.forward(q, k, v, call.is_causal, scale)
        return lambda: op.backward(grad, q, k, v, out, lse, call.is_causal, scale)
    if call.table == "block_sparse":
        return _block_sparse(call, q, k, v, grad, scale, device)
    rest = [None, *_branches(call), call.is_causal, scale, call.tf32]
    forward = partial(dilated.forward, q, k, v, *rest)
    if call.table == "gluon":  # whose backward pass is the Triton kernels'
        from models.kernels import dilated_gluon

        forward = partial(dilated_gluon.forward, q, k, v, *rest[1:-1])
    if not backward:
        return forward
    out, lse = forward()
    return lambda: dilated.backward(grad, None, q, k, v, out, lse, *rest)


def _block_sparse(call: Call, q, k, v, grad, scale: float, device: str):
    from models.kernels import block_sparse

    mask = _mask(call, device)
    options = (None, mask, call.is_causal, scale)
    two = block_sparse.ONE_TILE
    if call.kernel == "forward_pair":
        two = (False, block_pairs.paired(mask.row_ptr, mask.col_idx, call.is_causal))
    forward = partial(block_sparse.launch_forward, q, k, v, *options, two)
    if not call.kernel.startswith("backward"):
        return forward
    out, lse = forward()
    return lambda: block_sparse.launch_backward(None, lse, grad, q, k, v, out, *options)


def _branches(call: Call) -> tuple[list[int], ...]:
    from models.kernels.dilated import branch_lists

    pattern = patterns.DilatedBranches(call.segment_lengths, call.dilation_rates, call.head_offset)
    return branch_lists(pattern, call.heads)


def _mask(call: Call, device: str) -> patterns.BlockMask:
    options = {"sparsity": call.sparsity, "block_size": call.block_size}
    builder = getattr(patterns, call.builder)
    mask = builder(call.tokens, is_causal=call.is_causal, device=device, **options)
    return mask.causal() if call.is_causal else mask
