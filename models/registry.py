"""Variants: the named systems that experiments measure, and the published names they stand for.

Imports nothing heavy, so that grids can be read and planned without torch.
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
    called on (B, N, H * D).
    """

    name: str
    published_name: str
    summary: str
    entry: str
    options: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))
    pattern_class: str | None = "DilatedBranches"
    multihead: bool = False

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
        """The Python modules that a measurement of it starts from."""
        builders = ("models.patterns.block_builders",) if self.takes == "blocks" else ()
        return (self.module, *builders)


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
        "dilated-triton",
        "FusedDilatedAttention",
        "LongNet attention by our Triton kernels, which read in place and join the branches",
        "models.dilated:dilated_attention",
        MappingProxyType({"backend": "triton"}),
    ),
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
)
