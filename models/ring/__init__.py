"""Ring attention: a sequence over the ranks of a process group. Names load on first use.

`attention` is the call, `simulated` the same ring in one process, `gathered` LongNet's
all-gather. Below them `plan` says what travels and what is computed, `exchange` moves it,
`hops` computes.
"""

from models.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Grid": "models.patterns.orders",
        "RingError": "models.errors",
        "distributed_dilated_attention": "models.ring.gathered",
        "ring_attention": "models.ring.attention",
        "shard": "models.patterns.orders",
        "simulated_ring_attention": "models.ring.simulated",
        "traffic": "models.ring.exchange",
        "unshard": "models.patterns.orders",
    },
)
