"""Variants: the systems by name, and the published names they stand for.

Imports nothing heavy, so that it can be read without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Variant:
    """One system. `entry` is "module:attribute" of a function (q, k, v, ...) or of a module class.

    `options` are passed to it as they are. `pattern_class`: name of the class in
    `models.patterns` that says who attends to whom, here and in the oracle, or None
    for dense attention. `multihead`: whether it is an `nn.Module` with projections,
    called on (B, N, H * D). `shard_order`: the token order in which it takes the shards of a
    sequence over the ranks of a process group, or None where it takes the whole sequence.
    `replica_of`: of a replica, which computes what published code computed and not what it was
    named after, the variant that computes that; `summary` then says what its figures come from.
    """

    name: str
    published_name: str
    summary: str
    entry: str
    options: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))
    pattern_class: str | None = "DilatedBranches"
    multihead: bool = False
    shard_order: str | None = None
    replica_of: str | None = None

    @property
    def is_peer(self) -> bool:
        """Whether it is somebody else's system, measured as it is."""
        return "peer" in self.options

    @property
    def has_exact_gradients(self) -> bool:
        """Whether its gradients are those of its values, and not of a training rule of its own."""
        return self.module != "models.detached_mixing"

    @property
    def is_streamed(self) -> bool:
        """Whether it reads the sequence chunk by chunk from a source."""
        return "source" in self.options

    @property
    def can_be_simulated(self) -> bool:
        """Whether virtual ranks in one process can stand for its process group."""
        return self.entry == _RING or (self.multihead and self.shard_order is not None)

    @property
    def takes(self) -> str | None:
        """What a case must say of the pattern: "branches", "blocks", or None for dense."""
        if self.pattern_class is None:
            return None
        return "blocks" if self.pattern_class == "BlockMask" else "branches"

    @property
    def module(self) -> str:
        """The Python module that `entry` is in."""
        return self.entry.partition(":")[0]

    @property
    def modules(self) -> tuple[str, ...]:
        """The Python modules that a run of it starts from."""
        builders = ("models.patterns.block_builders",) if self.takes == "blocks" else ()
        simulation = (SIMULATION,) if self.can_be_simulated else ()
        return (self.module, *builders, *simulation)


# Imported by name, so that only what it stands behind hangs on it.
SIMULATION = "models.ring.simulated"
_RING = "models.ring.attention:ring_attention"


def _variants(*variants: Variant) -> MappingProxyType:
    return MappingProxyType({variant.name: variant for variant in variants})


def _dense(name: str, published_name: str, backend: str, summary: str) -> Variant:
    return Variant(
        name,
        published_name,
        summary,
        "models.dense:dense_attention",
        MappingProxyType({"backend": backend}),
        pattern_class=None,
    )


def _block_sparse(name: str, published_name: str, backend: str, summary: str) -> Variant:
    return Variant(
        name,
        published_name,
        summary,
        "models.block_sparse:block_sparse_attention",
        MappingProxyType({"backend": backend}),
        pattern_class="BlockMask",
    )


def _streamed(suffix: str, source: str, summary: str) -> Variant:
    return Variant(
        f"dilated-streamed{suffix}",
        f"Streamed dilated attention, {source}",
        f"LongNet attention {summary}",
        "models.streamed:streamed_dilated_attention",
        MappingProxyType({"source": source}),
    )


def _ring(
    name: str, published_name: str, order: str, summary: str, pattern_class: str | None = None
) -> Variant:
    options = MappingProxyType({"order": order})
    return Variant(
        name,
        published_name,
        summary,
        _RING,
        options,
        pattern_class,
        shard_order=order,
    )


def _peer(name: str, published_name: str, order: str, summary: str) -> Variant:
    """One of `models.ring.peers.PEERS`; where not causal it gives the same in every order."""
    return Variant(
        name,
        published_name,
        summary,
        "models.ring.peers:peer_attention",
        MappingProxyType({"peer": name}),
        pattern_class=None,
        shard_order=order,
    )


def _replica(
    name: str, published_name: str, entry: str, replica_of: str, summary: str, pattern_class: str
) -> Variant:
    """One of `models.as_published`."""
    return Variant(
        f"published-{name}",
        published_name,
        summary,
        f"models.as_published.{entry}",
        pattern_class=pattern_class,
        replica_of=replica_of,
    )


VARIANTS = _variants(
    Variant(
        "dense",
        "PyTorch baseline",
        "scaled-dot-product attention by PyTorch's fastest backend",
        "models.dense:dense_attention",
        pattern_class=None,
    ),
    Variant(
        "dilated-gather",
        "DilatedAttention",
        "LongNet attention read plainly: gather, softmax, scatter, mix",
        "models.dilated:dilated_attention",
        MappingProxyType({"backend": "gather"}),
    ),
    Variant(
        "dilated-sdpa",
        "ImprovedDilatedAttention",
        "LongNet attention by fused attention on strided views",
        "models.dilated:dilated_attention",
        MappingProxyType({"backend": "sdpa"}),
    ),
    Variant(
        "dilated-cudnn",
        "Dilated by cuDNN",
        "LongNet attention by cuDNN's attention on strided views",
        "models.dilated:dilated_attention",
        MappingProxyType({"backend": "sdpa-cudnn"}),
    ),
    Variant(
        "dilated-triton",
        "FusedDilatedAttention",
        "LongNet attention by our Triton kernels, which read in place and join the branches",
        "models.dilated:dilated_attention",
        MappingProxyType({"backend": "triton"}),
    ),
    Variant(
        "dilated-gluon",
        "FusedDilatedAttention, warp-specialised",
        "LongNet attention by our Gluon forward for Hopper, and the Triton kernels' backward",
        "models.dilated:dilated_attention",
        MappingProxyType({"backend": "gluon"}),
    ),
    Variant(
        "dilated-detached",
        "Dilated, weights detached",
        "LongNet attention with no gradient through the mixing weights, as torchscale trains it",
        "models.detached_mixing:detached_dilated_attention",
        MappingProxyType({"backend": "sdpa"}),
    ),
    Variant(
        "dilated-masked",
        "Dilated (masked)",
        "LongNet attention by a dense pass, to whose scores logs of the branches' counts are added",
        "models.masked_dilated:masked_dilated_attention",
        MappingProxyType({"backend": "sdpa"}),
    ),
    _streamed("", "generated", "chunk by chunk from a generator, in bounded memory"),
    _streamed("-mapped", "mapped", "chunk by chunk from mapped files, in bounded memory"),
    _streamed("-host", "host", "chunk by chunk from host memory"),
    Variant(
        "head-partitioned",
        "DilatedAttention (head-partitioned)",
        "each head sees one branch: what the published code computed; not LongNet",
        "models.dilated:head_partitioned_attention",
        MappingProxyType({"backend": "sdpa"}),
        pattern_class="HeadPartition",
    ),
    Variant(
        "multihead-dilated-gather",
        "MultiheadDilatedAttention",
        "projections around dilated-gather, MAGNETO sub-LayerNorm",
        "models.modules:MultiheadDilatedAttention",
        MappingProxyType({"backend": "gather"}),
        multihead=True,
    ),
    Variant(
        "multihead-dilated-sdpa",
        "ImprovedMultiheadDilatedAttention",
        "projections around dilated-sdpa, MAGNETO sub-LayerNorm",
        "models.modules:MultiheadDilatedAttention",
        MappingProxyType({"backend": "sdpa"}),
        multihead=True,
    ),
    _block_sparse(
        "block-sparse",
        "Block-Sparse",
        "auto",
        "one softmax over the kept key blocks of a row, by the fastest backend that can",
    ),
    _block_sparse(
        "block-sparse-sdpa",
        "Block-Sparse (gathered)",
        "sdpa",
        "block-sparse attention over gathered key blocks in PyTorch",
    ),
    _block_sparse(
        "block-sparse-flex",
        "Block-Sparse (FlexAttention)",
        "flex",
        "block-sparse attention by PyTorch's compiled FlexAttention",
    ),
    Variant(
        "block-sparse-masked",
        "Block-Sparse (masked)",
        "block-sparse attention by masking the scores of a dense pass",
        "models.masked:masked_block_attention",
        MappingProxyType({"backend": "sdpa"}),
        pattern_class="BlockMask",
    ),
    _dense("dense-flash", "SDPA flash", "sdpa-flash", "PyTorch's flash attention"),
    _dense(
        "dense-efficient",
        "SDPA memory-efficient",
        "sdpa-efficient",
        "PyTorch's memory-efficient attention",
    ),
    _dense("dense-cudnn", "SDPA cuDNN", "sdpa-cudnn", "cuDNN's attention through PyTorch"),
    _dense("dense-math", "SDPA math", "sdpa-math", "PyTorch's attention written out in matmuls"),
    _dense("dense-eager", "Eager softmax", "eager", "our explicit softmax over all N x N scores"),
    _dense("dense-flex", "FlexAttention", "flex", "PyTorch's compiled FlexAttention, no mask"),
    _dense("dense-flash-attn-2", "FlashAttention-2", "flash-attn-2", "the package flash-attn"),
    _dense("dense-flash-attn-4", "FlashAttention-4", "flash-attn-4", "the package flash-attn-4"),
    _ring(
        "ring-standard",
        "StandardRingAttention",
        "contiguous",
        "dense ring attention, each rank the next part of the sequence; row-major of a grid",
    ),
    _ring(
        "ring-distributed",
        "DistributedRingAttention",
        "zigzag",
        "dense ring attention, each rank a chunk from either end: equal work when causal",
    ),
    _ring(
        "ring-striped",
        "Striped Attention",
        "striped",
        "dense ring attention, token i on rank i mod p (arXiv 2311.09431)",
    ),
    _ring(
        "ring-hilbert",
        "HilbertRingAttention",
        "hilbert",
        "dense ring attention, tokens of a 2-D grid along Hilbert's curve",
    ),
    _ring(
        "ring-morton",
        "Ring attention, Morton order",
        "morton",
        "dense ring attention, tokens of a 2-D grid along the Z curve",
    ),
    _ring(
        "ring-snake",
        "Ring attention, snake order",
        "snake",
        "dense ring attention, tokens of a 2-D grid in rows of alternating direction",
    ),
    _ring(
        "ring-dilated",
        "RingDilatedAttention",
        "contiguous",
        "LongNet attention over ranks; long segments exchange the keys they keep, others none",
        "DilatedBranches",
    ),
    _ring(
        "ring-block-sparse",
        "BlockSparseRingAttention",
        "zigzag",
        "block-sparse attention over ranks; the blocks that a rank's lists hold are sent to it",
        "BlockMask",
    ),
    _ring(
        "ring-block-sparse-dilated",
        "BlockSparseRingDilatedAttention",
        "zigzag",
        "block-sparse attention over ranks on a mask of dilated blocks",
        "BlockMask",
    ),
    Variant(
        "distributed-dilated",
        "DistributedDilatedAttention",
        "LongNet attention over ranks by one all-gather of the kept keys (LongNet, section 3.1)",
        "models.ring.all_gather:distributed_dilated_attention",
        MappingProxyType({"order": "contiguous"}),
        shard_order="contiguous",
    ),
    Variant(
        "multihead-ring-dilated",
        "RingMultiheadDilatedAttention",
        "projections around ring-dilated, MAGNETO sub-LayerNorm",
        "models.modules:MultiheadDilatedAttention",
        MappingProxyType({"order": "contiguous"}),
        multihead=True,
        shard_order="contiguous",
    ),
    _peer(
        "torch-context-parallel-allgather",
        "PyTorch context_parallel",
        "zigzag",
        "the ring of PyTorch's context_parallel, keys gathered at once (its default)",
    ),
    _peer(
        "torch-context-parallel-alltoall",
        "PyTorch context_parallel, rotating",
        "zigzag",
        "the ring of PyTorch's context_parallel, keys from neighbour to neighbour",
    ),
    _peer(
        "ring-attention-pytorch",
        "ring-attention-pytorch",
        "contiguous",
        "the package of that name (lucidrains), its PyTorch function",
    ),
    _peer(
        "ring-flash-attn-zigzag",
        "ring-flash-attn",
        "zigzag",
        "the package of that name (zhuzilin), its zigzag function",
    ),
    _replica(
        "head-partition",
        "DilatedAttention, as published",
        "head_partition:head_loop_attention",
        "dilated-gather",
        "each head in one branch, head by head in a Python loop with all scores written down",
        "HeadPartition",
    ),
    _replica(
        "over-heads",
        "ImprovedDilatedAttention, as published",
        "over_heads:over_heads_attention",
        "dilated-sdpa",
        "attention across the heads at one position; no token sees another",
        "HeadPartition",
    ),
    _replica(
        "signed-sum",
        "DilatedAttention of 2023, as published",
        "signed_sum:signed_sum_attention",
        "dilated-sdpa",
        "each head in one branch, whose output is divided by its signed sum over the sequence",
        "HeadPartition",
    ),
    _replica(
        "block-sums",
        "Block-Sparse, as published",
        "block_sums:block_sums_attention",
        "block-sparse",
        "a softmax inside each block, the blocks added up; the sparsity asked for is ignored",
        "BlockMask",
    ),
    _replica(
        "dense-ring",
        "Ring attention, as published",
        "dense_ring:dense_ring_attention",
        "dilated-sdpa",
        "dense attention with all scores written down, under three names; segments are ignored",
        "DilatedBranches",
    ),
)
