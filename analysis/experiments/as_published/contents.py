"""What the experiment `as_published` shows, by name."""

from analysis.experiments.as_published import figures, numbers, tables, tables_of_costs
from analysis.standard.by_machine import ByMachine
from analysis.standard.tables import censored, machines

EXPERIMENT = "as_published"
FIGURES = {"speedups": figures.speedups, "plots": figures.plots}
_OUTPUTS = ("Output, published type", "Output here")
TABLES = {
    "replicas": tables.replicas,
    "speedups": ByMachine(tables.speedups, EXPERIMENT, 3),
    "deviations": ByMachine(tables.deviations, EXPERIMENT, 2, ("Exact system",)),
    "plots": ByMachine(tables.plots, EXPERIMENT, 4, ("Model",)),
    "billion": ByMachine(tables_of_costs.billion, EXPERIMENT, 2),
    "memory": ByMachine(tables_of_costs.memory, EXPERIMENT, 2, _OUTPUTS),
    "first-call": ByMachine(tables_of_costs.first_call, EXPERIMENT, 1),
    "one-ring": ByMachine(tables_of_costs.one_ring, EXPERIMENT, 1),
    "censored": censored(EXPERIMENT),
    "machines": machines(EXPERIMENT),
}
NUMBERS = (numbers.of_replicas,)
