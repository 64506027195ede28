"""Long-context attention systems: exact, by explicit backend. Shapes are (B, N, H, D).

Names load on first use, so that `models.registry` can be read without torch.
"""

from importlib import import_module

_HOME = {
    "MultiheadDilatedAttention": "models.modules",
    "UnsupportedBackend": "models.errors",
    "block_sparse_attention": "models.block_sparse",
    "dense_attention": "models.dense",
    "dilated_attention": "models.dilated",
    "head_partitioned_attention": "models.dilated",
    "RingError": "models.errors",
    "ring_attention": "models.ring.attention",
    "streamed_dilated_attention": "models.streamed",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
