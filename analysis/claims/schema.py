"""The claims file's systems, cards and write-ups as types; verdicts; tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from experiments.case import DTYPES, PATTERNS

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
REFUTED, NOT_TESTABLE = "refuted", "not testable here"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, REFUTED, NOT_TESTABLE)
ARITHMETIC, PHYSICS, CONSTRUCTION = "arithmetic", "physics", "construction"
RECORDS, NONE = "records", "none"
BASES = (ARITHMETIC, PHYSICS, CONSTRUCTION, RECORDS, NONE)
# The mechanism of a figure that does not hold, where it is not known how it arose.
UNKNOWN = "unknown"

# A figure is reproduced when ours lies within this factor of it, or it lies in our interval.
# An interval wider than the factor both ways decides nothing but a significant direction.
FACTOR = 1.25
# A published ratio claims a direction only beyond this factor; an opposite, significant measured
# direction then refutes it. Memory has no interval: there the factor itself is significance.
DIRECTION = 1.05
# Published and measured exponents of growth this close are equal; an interval wider than that
# both ways decides only a bound that it lies beyond.
EXPONENT = 0.25
# A fitted exponent this close to a claimed bound is the bound.
EXPONENT_SLACK = 0.05
# Published figures that follow from each other to within this share, but not within rounding,
# were averaged in different ways: not reproduced. Further apart they contradict each other.
AVERAGING = 0.01
# Cards run above their rated boost clock where power allows: a GTX 1080 reaches 2.1 GHz.
HEADROOM = 1.25


# What figures of tables and plots are of, with which they are looked up.
QUANTITIES = (
    *("time", "std", "throughput", "memory", "memory_per_token", "speedup", "vram", "runs"),
    *("crossover", "gpu_time", "cpu_time", "gpu_over_cpu", "gpu_throughput", "cpu_throughput"),
    "time_share",
)


class ClaimsError(ValueError):
    """The claims file cannot be used: names the file, the claim's id and the field."""


@dataclass(frozen=True)
class Judgement:
    """What a predicate finds; `measured` is {value, low, high, unit}, `rows` the evidence."""

    verdict: str
    basis: str
    reason: str
    measured: dict | None = None
    rows: tuple[Mapping, ...] = ()

    @classmethod
    def without_records(cls, missing: list[str], *more: str) -> Judgement:
        """Not testable: `missing` names the records that it needs, `more` follows in the reason."""
        return cls(NOT_TESTABLE, NONE, "; ".join([f"missing: {'; '.join(missing)}", *more]))

    def overruled(self, verdict: str, basis: str, reason: str) -> Judgement:
        """Decided on other grounds than records; what was measured stays as a remark."""
        if self.measured is not None:
            reason = f"{reason}. Measured: {self.reason}"
        return replace(self, verdict=verdict, basis=basis, reason=reason)


@dataclass(frozen=True)
class Verdict:
    """A claim judged.

    predicate: in words. mechanism: name of how the published figure arose; None where the figure
    holds, or is not tested and nothing is known of it. see: tables and figures, from the build
    folder, without suffix. evidence: {path, machine, command} of each record that the verdict
    rests on.
    """

    id: str
    writeup: str
    source: str
    claim: str
    published: object
    kind: str
    predicate: str
    verdict: str
    basis: str
    reason: str
    measured: dict | None
    mechanism: str | None
    see: list[str]
    evidence: list[dict]


def _known(what: str) -> AfterValidator:
    def check(name: str, info: ValidationInfo) -> str:
        known = info.context[what]
        if name not in known:
            listed = f": expected one of {', '.join(known)}" if len(known) < 30 else ""
            raise ValueError(f"unknown {what.rstrip('s')} {name!r}{listed}")
        return name

    return AfterValidator(check)


SystemName = Annotated[str, _known("systems")]
MechanismName = Annotated[str, _known("mechanisms")]
CardName = Annotated[str, _known("cards")]
VariantName = Annotated[str, _known("variants")]
Dtype = Literal[DTYPES]
Number = int | float
# A table or a figure of the build folder, without suffix.
Output = Annotated[str, Field(pattern=r"^(tables|figures)/[\w-]+$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Shape(Strict):
    """Fields of a case that a claim fixes; what is not given is not compared.

    In a claim null is any value, also where the write-up's conditions fix one.
    """

    batch: int | None = None
    seq_len: int | None = None
    min_seq_len: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    dtype: Dtype | None = None
    is_causal: bool | None = None
    pass_: Literal["forward", "forward_backward"] | None = Field(None, alias="pass")
    dilation_rates: list[int] | None = None
    pattern: Literal[PATTERNS] | None = None
    sparsity: float | None = Field(None, ge=0, lt=1)
    block_size: int | None = None
    world_size: int | None = Field(None, ge=1)
    min_world_size: int | None = Field(None, ge=1)
    simulated: bool | None = None

    def given(self) -> dict:
        return self.model_dump(by_alias=True, exclude_unset=True)


class About(Strict):
    """What the figure of a claim is of; system and shape where the predicate does not say them.

    plot: the figure was read off this plot, and is of no system and shape.
    """

    quantity: Literal[QUANTITIES]
    system: SystemName | None = None
    batch: int | None = None
    seq_len: int | None = None
    plot: str | None = None


class Card(Strict):
    """A device named in a write-up: rated FLOP/s by dtype, bytes/s, how records call it."""

    device: str
    flops: dict[Dtype, Number]
    bytes_per_s: Number
    memory_bytes: int
    source: str


class System(Strict):
    """A published system: our variant of it, what it attends to, what it wraps.

    pattern: "blocks" are those of the write-up's conditions, at the system's `sparsity`.
    projections: (E, E) matrices that it multiplies every token with, E = heads x head_dim.
    experiment: where it is measured, if not in that of the write-up.
    mechanism: what the published times of it come from, where a claim names none.
    """

    name: str
    variant: VariantName | None
    pattern: Literal["dilated", "dense", "blocks"] | None = None
    sparsity: float | None = Field(None, ge=0, lt=1)
    projections: int = 0
    contains: SystemName | None = None
    experiment: str | None = None
    mechanism: MechanismName | None = None


class Mechanism(Strict):
    """How published figures arose: one sentence, the replica that shows it and where to see it."""

    title: str
    explanation: str
    variant: VariantName | None
    evidence: Output | None


class Writeup(Strict):
    """branches: length -> [segment length, dilation rate] pairs used there, where stated.

    experiment: what it is judged by; null where every system that it mentions names its own.
    """

    experiment: str | None
    conditions: Shape
    branches: dict[int, list[list[int]]] = {}
    stand_ins: list[Shape] = []
