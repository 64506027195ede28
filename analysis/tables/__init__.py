"""Tables in the published layout, the published figure beside the measured one.

`TABLES[experiment]` maps a table's name to the function that makes it of a frame and a machine;
`analysis.table.save` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from analysis.table import Table
from analysis.tables import (
    as_published,
    as_published_costs,
    backends,
    block_sparse,
    blocks,
    common,
    comprehensive,
    dilated,
    extreme,
    memory,
    ring,
    ring_orders,
    ring_scaling,
)

Maker = Callable[[pd.DataFrame, str], Table]

# Of a table of what one machine measured: how many columns say what a row is of, and which others
# are not measured. Machines that have what the first lacks are added in blocks.
LABELS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    **{f"dilated-{name}": (1, ()) for name in ("small", "medium", "large")},
    "dilated-vram": (1, ("Dilated batch", "Multihead batch")),
    **{f"{name}-training": (4, ()) for name in ("dilated", "comprehensive", "ring", "extreme")},
    "comprehensive-times": (3, ()),
    **{f"comprehensive-summary-{n}": (1, ()) for n in (2048, 4096, 8192)},
    "block_sparse-comparison": (3, ("Batch", "Density asked", "Density realised")),
    "block_sparse-lengths": (4, ()),
    "block_sparse-training": (4, ()),
    "block_sparse-patterns": (5, ("Density realised",)),
    "ring-single": (3, ()),
    "ring-memory": (4, ()),
    **{f"ring-{name}": (4, ()) for name in ("strong", "weak", "traffic", "peers", "orders")},
    "extreme-lengths": (2, ()),
    "extreme-dense": (1, ("Dense is",)),
    "extreme-sources": (2, ()),
    **{f"backends-{name}": (3, ("Ceiling",)) for name in ("times", "rates", "worth", "training")},
    "as_published-speedups": (3, ()),
    "as_published-deviations": (2, ("Exact system",)),
    "as_published-plots": (4, ("Model",)),
    "as_published-billion": (2, ()),
    "as_published-memory": (2, ("Output, published type", "Output here")),
    "as_published-first-call": (1, ()),
    "as_published-one-ring": (1, ()),
    "memory-peaks": (3, ()),
    "memory-per-token": (1, ("Batch", "Longest")),
    "memory-vram": (2, ()),
}


def _common(experiment: str) -> dict[str, Maker]:
    """The tables that every experiment has."""
    made = (common.scaling, common.training, common.censored, common.machines)
    return {make.__name__: make(experiment) for make in made}


_MADE: Mapping[str, Mapping[str, Maker]] = {
    "dilated": {
        **{name: dilated.shape(i) for i, name in enumerate(("small", "medium", "large"))},
        "cpu": dilated.cpu,
        "vram": dilated.vram,
        **_common("dilated"),
    },
    "comprehensive": {
        "times": comprehensive.times,
        **{f"summary-{n}": comprehensive.summary(n) for n in (2048, 4096, 8192)},
        **_common("comprehensive"),
    },
    "block_sparse": {
        **_common("block_sparse"),
        "comparison": block_sparse.comparison,
        "lengths": block_sparse.by_length("forward"),
        "training": block_sparse.by_length("forward_backward"),
        "patterns": block_sparse.patterns,
        "crossover": block_sparse.crossover,
    },
    "ring": {
        **_common("ring"),
        "single": ring.single,
        "memory": ring.memory,
        "growth": ring.growth,
        "strong": ring_scaling.strong,
        "weak": ring_scaling.weak,
        "traffic": ring_scaling.traffic,
        "peers": ring_scaling.peers,
        "orders": ring_orders.orders,
        "locality": ring_orders.local,
        "model": ring_orders.model,
    },
    "extreme": {
        **_common("extreme"),
        "lengths": extreme.lengths,
        "dense": extreme.dense,
        "sources": extreme.sources,
    },
    "backends": {
        **_common("backends"),
        "times": backends.times,
        "rates": backends.useful,
        "worth": backends.worth,
        "training": backends.training,
    },
    "as_published": {
        "replicas": as_published.replicas,
        "speedups": as_published.speedups,
        "deviations": as_published.deviations,
        "plots": as_published.plots,
        "billion": as_published_costs.billion,
        "memory": as_published_costs.memory,
        "first-call": as_published_costs.first_call,
        "one-ring": as_published_costs.one_ring,
        "censored": common.censored("as_published"),
        "machines": common.machines("as_published"),
    },
    "memory": {
        "peaks": memory.peaks,
        "per-token": memory.per_token,
        "vram": memory.vram,
        "growth": memory.growth,
        **{make.__name__: make("memory") for make in (common.censored, common.machines)},
    },
}


def _spoken(experiment: str, name: str, make: Maker) -> Maker:
    labels = LABELS.get(f"{experiment}-{name}")
    return make if labels is None else blocks.by_machine(make, experiment, *labels)


TABLES: Mapping[str, Mapping[str, Maker]] = {
    experiment: {name: _spoken(experiment, name, make) for name, make in made.items()}
    for experiment, made in _MADE.items()
}
