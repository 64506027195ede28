"""Triton kernels, one file per kernel, whose first line names the same in plain PyTorch.

In shapes B is the batch, N tokens, H query heads, Hkv key heads, D the head dimension; a tile has
BLOCK_M queries, BLOCK_N keys and BLOCK_D columns. What a kernel's variables are called: q, k, v,
out, lse, grad_* tensors; b_* a tile of one; p_* pointers to one, o_* offsets; *_step from one row
to the next; seen: which pairs of a query and a key count; held, here, there: which rows exist.
"""

from importlib.util import find_spec

from models.kernels.withdrawn import why_withdrawn as why_withdrawn

# PyTorch's builds for CPUs come without Triton, which the modules here import.
try:
    HAS_TRITON = find_spec("triton") is not None
except ModuleNotFoundError:  # an import hook that refuses it
    HAS_TRITON = False
MISSING = "the package triton is not installed"
