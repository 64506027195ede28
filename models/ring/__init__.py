"""Ring attention: a sequence over the ranks of a process group. Names load on first use.

`attention` is the call, `simulated` the same ring in one process, `all_gather` LongNet's
distributed dilated attention. Below them `plan` says what is sent and computed, `exchange`
sends it, `hops` computes.
"""

from importlib import import_module

_HOME = {
    "Grid": "models.patterns.orders",
    "RingError": "models.errors",
    "distributed_dilated_attention": "models.ring.all_gather",
    "ring_attention": "models.ring.attention",
    "shard": "models.patterns.orders",
    "simulated_ring_attention": "models.ring.simulated",
    "traffic": "models.ring.exchange",
    "unshard": "models.patterns.orders",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'models.ring' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
