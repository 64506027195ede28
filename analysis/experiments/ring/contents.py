"""What the experiment `ring` shows, by name."""

from analysis.experiments.ring import (
    figure_efficiency,
    figure_memory,
    figure_model,
    figure_orders,
    figure_traffic,
    numbers,
    tables,
    tables_of_orders,
    tables_over_ranks,
)
from analysis.standard import contents, error, growth, rate
from analysis.standard.by_machine import ByMachine

EXPERIMENT = "ring"
FIGURES = {
    "time": growth.time,
    "error": error.error,
    "rate": rate.rate,
    "memory-ranks": figure_memory.memory_ranks,
    "efficiency": figure_efficiency.efficiency,
    "traffic": figure_traffic.traffic,
    "orders": figure_orders.orders,
    "model": figure_model.model,
}
TABLES = contents.tables(EXPERIMENT) | {
    "single": ByMachine(tables.single, EXPERIMENT, 3),
    "memory": ByMachine(tables.memory, EXPERIMENT, 4),
    "growth": tables.growth,
    "strong": ByMachine(tables_over_ranks.strong, EXPERIMENT, 4),
    "weak": ByMachine(tables_over_ranks.weak, EXPERIMENT, 4),
    "traffic": ByMachine(tables_over_ranks.traffic, EXPERIMENT, 4),
    "peers": ByMachine(tables_over_ranks.peers, EXPERIMENT, 4),
    "orders": ByMachine(tables_of_orders.orders, EXPERIMENT, 4),
    "locality": tables_of_orders.local,
    "model": tables_of_orders.model,
}
NUMBERS = (numbers.of_ranks,)
