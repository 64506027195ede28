"""Variants: the named systems that experiments measure, and the published names they stand for.

Imports nothing heavy, so that grids can be read and planned without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Variant:
    """One system. `entry` is "module:attribute" of a function (q, k, v, ...) or of a module class.

    `options` are passed to it as they are. `pattern`: name of the class in
    `models.patterns` that the segment lengths and dilation rates go to, both here
    and in the oracle, or None for a variant that takes none (dense). `multihead`:
    whether it is an `nn.Module` with projections, called on (B, N, H * D).
    """

    name: str
    published_name: str
    summary: str
    entry: str
    options: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))
    pattern: str | None = "DilatedBranches"
    multihead: bool = False

    @property
    def branches(self) -> bool:
        """Whether it takes segment lengths and dilation rates."""
        return self.pattern is not None

    @property
    def module(self) -> str:
        """The Python module that the variant's code starts from."""
        return self.entry.partition(":")[0]


def _variants(*variants: Variant) -> MappingProxyType:
    return MappingProxyType({variant.name: variant for variant in variants})


VARIANTS = _variants(
    Variant(
        "dense",
        "PyTorch baseline",
        "scaled-dot-product attention by PyTorch's fastest backend",
        "models.dense:dense_attention",
        pattern=None,
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
        "head-partitioned",
        "DilatedAttention (head-partitioned)",
        "each head sees one branch: what the published code computed; not LongNet",
        "models.dilated:head_partitioned_attention",
        MappingProxyType({"backend": "sdpa"}),
        pattern="HeadPartition",
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
)
