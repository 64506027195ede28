"""Ring attention: a sequence over the ranks of a process group. Names load on first use.

`attention` is the call, `simulated` the same ring in one process, `all_gather` LongNet's
distributed dilated attention. Below them `plan` says what is sent and computed, `exchange`
sends it, `hops` computes.
"""

from models.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Grid": "models.patterns.curves",
        "RingError": "models.errors",
        "distributed_dilated_attention": "models.ring.all_gather",
        "ring_attention": "models.ring.attention",
        "shard": "models.patterns.orders",
        "simulated_ring_attention": "models.ring.simulated",
        "traffic": "models.ring.exchange",
        "unshard": "models.patterns.orders",
    },
)
