"""Long-context attention systems: exact, by explicit backend. Shapes are (B, N, H, D)."""

from models.dense import dense_attention
from models.dilated import dilated_attention, head_partitioned_attention
from models.errors import UnsupportedBackend
from models.modules import MultiheadDilatedAttention

__all__ = [
    "MultiheadDilatedAttention",
    "UnsupportedBackend",
    "dense_attention",
    "dilated_attention",
    "head_partitioned_attention",
]
