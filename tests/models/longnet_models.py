"""Tiny LongNet models of every variant that runs on a CPU."""

from __future__ import annotations

import torch

from models import LongNetConfig, LongNetLM
from models.registry import VARIANTS

VOCAB, LONGEST = 50, 64
BRANCHES = {"segment_lengths": (8, 32), "dilation_rates": (1, 3)}
BLOCKS = {"sparsity": 0.5, "block_size": 8}
ON_CPU = (
    "dense",
    "dense-flash",
    "dense-math",
    "dense-eager",
    "dilated-gather",
    "dilated-sdpa",
    "dilated-detached",
    "dilated-masked",
    "head-partitioned",
    "block-sparse",
    "block-sparse-sdpa",
    "block-sparse-masked",
    "ring-standard",
    "ring-distributed",
    "ring-striped",
    "ring-hilbert",
    "ring-morton",
    "ring-snake",
    "ring-dilated",
    "ring-block-sparse",
    "ring-block-sparse-dilated",
    "distributed-dilated",
)
ELSEWHERE = (
    "dilated-cudnn",
    "dilated-triton",
    "dilated-gluon",
    "block-sparse-flex",
    "dense-efficient",
    "dense-cudnn",
    "dense-flex",
    "dense-flash-attn-2",
    "dense-flash-attn-4",
)
PATTERNS = ("local_window", "dilated", "global_local", "strided", "random", "top_k")
# Every variant once, and every pattern of blocks once.
SYSTEMS = [(name, None) for name in ON_CPU if not name.startswith("block-sparse")]
SYSTEMS += [("block-sparse", pattern) for pattern in PATTERNS]
SYSTEMS += [("block-sparse-sdpa", "top_k")]
SYSTEMS += [("block-sparse-masked", pattern) for pattern in ("strided", "top_k")]


def config(attention="dilated-sdpa", pattern=None, **options):
    takes = VARIANTS[attention].takes
    fields = {"vocab_size": VOCAB, "max_seq_len": LONGEST, "layers": 2, "embed_dim": 32}
    fields |= {"heads": 4, "kv_heads": 2, "ffn_dim": 48, "attention": attention}
    if takes == "branches":
        fields |= BRANCHES
    if takes == "blocks":
        fields |= BLOCKS | {"pattern": pattern or "dilated"}
    return LongNetConfig(**fields | options)


def model(
    attention="dilated-sdpa", pattern=None, kind=LongNetLM, group=None, dtype=None, **options
):
    torch.manual_seed(0)
    return kind(config(attention, pattern, **options), group=group, dtype=dtype)


def tokens(batch=2, n=45, seed=1):
    return torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))
