"""Long-context attention systems: exact, by explicit backend. Shapes are (B, N, H, D).

Names load on first use, so that `models.registry` can be read without torch.
"""

from models.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "LongNetConfig": "models.language.config",
        "LongNetEncoder": "models.longnet",
        "LongNetLM": "models.longnet",
        "MultiheadDilatedAttention": "models.modules",
        "UnsupportedBackend": "models.errors",
        "block_sparse_attention": "models.block_sparse",
        "dense_attention": "models.dense",
        "dilated_attention": "models.dilated",
        "head_partitioned_attention": "models.dilated",
        "RingError": "models.errors",
        "ring_attention": "models.ring.attention",
        "streamed_dilated_attention": "models.streamed",
    },
)
