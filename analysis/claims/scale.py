"""How large models, rows and data were: of a statement, and of the trainings that stand in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from analysis.claims.schema import Strict
from experiments.training.recipes import RECIPES, TEXT


class Scale(Strict):
    """What a statement was said of: rows and models of at least this size."""

    seq_len: int = Field(ge=1)
    parameters: int = Field(ge=1)

    def holds(self, row: Mapping) -> bool:
        """Whether a row of trainings is of that size."""
        return row["seq_len"] >= self.seq_len and row["learning"].parameters >= self.parameters

    @property
    def words(self) -> str:
        return f"{count(self.parameters)} parameters on rows of {self.seq_len} tokens"


def ours(rows: Sequence[Mapping]) -> str:
    """In place of the published scale: models, rows, data, seeds and device, in words."""
    largest = max(rows, key=lambda row: row["learning"].parameters)
    source = RECIPES[largest["recipe"]].source
    data = "bytes of Python sources" if source == TEXT else f"tokens of {named(source)}"
    models = f"models of {count(largest['learning'].parameters)} parameters"
    lengths = _span(row["seq_len"] for row in rows)
    seeds = _span(len(row["trainings"]) for row in rows)
    on = "on a CPU" if largest["device_kind"] == "cpu" else f"on {largest['device']}"
    return f"at our scale: {models}, rows of {lengths} {data}, {seeds} seeds each, {on}"


def pattern(row: Mapping) -> str:
    """What a system attends to, in words; "" of dense attention."""
    if row["segment_lengths"]:
        segments, rates = (
            ", ".join(map(str, row[name])) for name in ("segment_lengths", "dilation_rates")
        )
        return f"segments {segments} at rates {rates}"
    if isinstance(row["pattern"], str):
        return f"{row['pattern'].replace('_', ' ')} blocks, {100 * row['sparsity']:.4g} % sparse"
    return ""


def schedule(row: Mapping) -> tuple:
    """The same, with segments as shares of the row: equal of one system at two lengths."""
    if row["segment_lengths"]:
        shares = (length / row["seq_len"] for length in row["segment_lengths"])
        return (*shares, *row["dilation_rates"])
    return (row["pattern"], row["sparsity"]) if isinstance(row["pattern"], str) else ()


def reaching(rows: Sequence[Mapping]) -> list[Mapping]:
    """Those whose longest segment is the whole row, as the paper has it, where there are any."""
    whole = [row for row in rows if max(row["segment_lengths"] or (0,)) >= row["seq_len"]]
    return whole or list(rows)


def shape_of(row: Mapping) -> tuple:
    """What the two sides of a comparison share, the length first."""
    return tuple(row[name] for name in ("seq_len", "batch", "heads", "head_dim", "dtype"))


def flops_over(one: Mapping, other: Mapping) -> float:
    """FLOPs of a step of one over those of a step of the other."""
    return one["useful_flops"] / other["useful_flops"]


def flops_apart(pair: Sequence[Mapping]) -> tuple:
    """How far the FLOPs of two steps are apart; of as far ones, the denser pair first."""
    share, work = flops_over(*pair), sum(row["useful_flops"] for row in pair)
    return max(share, 1 / share), -work, *(row["path"] for row in pair)


def size_of(pairs: Sequence[Sequence[Mapping]]) -> tuple[int, int]:
    """Parameters and length of the largest."""
    rows = [row for pair in pairs for row in pair]
    return max(((row["learning"].parameters, row["seq_len"]) for row in rows), default=(0, 0))


def named(source: str) -> str:
    """What is learnt, in words."""
    return "text" if source == TEXT else source.replace("_", " ")


def count(number: int) -> str:
    """125M, 0.84M, 12K."""
    for unit, size, least in (("B", 10**9, 10**9), ("M", 10**6, 10**5), ("K", 10**3, 10**3)):
        if number >= least:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _span(numbers) -> str:
    numbers = list(numbers)
    return " to ".join(map(str, dict.fromkeys((min(numbers), max(numbers)))))
