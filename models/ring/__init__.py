"""Ring attention: a sequence over the ranks of a process group. Names load on first use.

`attention` is the call, `simulated` the same ring in one process, `gathered` LongNet's
all-gather. Below them `plan` says what travels and what is computed, `exchange` moves it,
`hops` computes.
"""

from importlib import import_module

_HOME = {
    "Grid": "models.patterns.orders",
    "RingError": "models.errors",
    "distributed_dilated_attention": "models.ring.gathered",
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
