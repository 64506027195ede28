"""The claims file's systems, cards and write-ups as types; verdicts; tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from experiments.case import DTYPES, PATTERNS

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
DIFFERS, CARD, NOT_MEASURED = "differs by machine", "needs a card", "not measured"
VERDICTS = (HOLDS, FAILS, UNDECIDED, DIFFERS, CARD, NOT_MEASURED)
# Those that records or reasons have settled, and those that further measuring would settle.
SETTLED, OPEN = (HOLDS, FAILS, DIFFERS), (UNDECIDED, CARD, NOT_MEASURED)
# Whether the published code does it, and whether the method does that it is named after.
AS_PUBLISHED, METHOD = "as_published", "method"
SIDES = (AS_PUBLISHED, METHOD)
# What an entry is: a claim, with two verdicts; the figure of another again; a figure judged by
# others of the same write-up; or set-up, plan and opinion, which nothing judges.
CLAIM, RESTATEMENT, CONSISTENCY, CONTEXT = "claim", "restatement", "consistency", "context"
SORTS = (CLAIM, RESTATEMENT, CONSISTENCY, CONTEXT)
STRENGTHS = ("states", "may", "estimates")
ARITHMETIC, PHYSICS, CONSTRUCTION = "arithmetic", "physics", "construction"
HISTORY, RECORDS, NONE = "public history", "records", "none"
BASES = (ARITHMETIC, PHYSICS, CONSTRUCTION, HISTORY, RECORDS, NONE)
# The mechanism of a figure that does not hold, where it is not known how it arose.
UNKNOWN = "unknown"

# A figure holds when ours lies within this factor of it, or it lies in our interval. An interval
# wider than the factor both ways decides nothing but a significant direction.
FACTOR = 1.25
# A published ratio claims a direction only beyond this factor; an opposite, significant measured
# direction then contradicts it. Memory has no interval: there the factor itself is significance.
DIRECTION = 1.05
# Published and measured exponents of growth this close are equal; an interval wider than that
# both ways decides only a bound that it lies beyond.
EXPONENT = 0.25
# A fitted exponent this close to a strict bound does not tell which side of it it is on.
EXPONENT_SLACK = 0.05
# Published figures that should follow from each other and are no further apart than this share are
# off by a little.
NEARLY = 0.01
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
    """What a predicate finds; `measured` is {value, low, high, unit}, `rows` the evidence.

    stand_in: where records decide, what differs from the published setting, in words: "float32, on
    a CPU". needs: the card, or what is missing, where that is what the verdict waits for. command:
    what would measure it. beside: {over, verdict, measured} of the same comparison over attention
    that is fused.
    """

    verdict: str
    basis: str
    reason: str
    measured: dict | None = None
    rows: tuple[Mapping, ...] = ()
    stand_in: str = ""
    needs: str | None = None
    command: str | None = None
    beside: dict | None = None

    def overruled(self, verdict: str, basis: str, reason: str) -> Judgement:
        """Decided on other grounds than records; what was measured stays as a remark."""
        if self.measured is not None:
            reason = f"{reason}. Measured: {self.reason}"
        nothing = {"stand_in": "", "needs": None, "command": None}
        return replace(self, verdict=verdict, basis=basis, reason=reason, **nothing)


@dataclass(frozen=True)
class Side:
    """One of the verdicts on a claim; see `Judgement`.

    evidence: {path, machine, command} of each record.
    """

    verdict: str
    basis: str
    reason: str
    stand_in: str
    measured: dict | None
    needs: str | None
    command: str | None
    beside: dict | None
    evidence: list[dict]

    @property
    def words(self) -> str:
        """The verdict with what stood in: "holds, float32, on a CPU"."""
        return f"{self.verdict}, {self.stand_in}" if self.stand_in else self.verdict


@dataclass(frozen=True)
class Verdict:
    """An entry of the claims file, judged.

    line: where the write-up makes it, of a paper a place such as "table 2". unit: of the published
    figure. sort: one of SORTS. predicate: in words. headline: the finding that it belongs to, None
    of context. as_published, method: of a claim or a restatement, where its kind judges that side,
    else None. consistency: of a consistency check or a restatement, else None. mechanism: name of
    how the published figure arose; None where the method does the same, or nothing is known of it.
    see: tables and figures, from the build folder, without suffix.
    """

    id: str
    writeup: str
    section: str
    line: str
    sort: str
    strength: str
    scope: str | None
    subject: str
    claim: str
    published: object
    unit: str
    kind: str
    predicate: str
    headline: str | None
    as_published: Side | None
    method: Side | None
    consistency: Side | None
    mechanism: str | None
    see: list[str]
    note: str | None


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
    experiment: of whose tables it is, if not of those of the write-up; dilated systems, whose
    branches differ from one to another, are judged by its records.
    mechanism: what the published times of it come from, where a claim names none.
    also: variants that compute the same, of which trainings count too. replica: the variant that
    computes what the published code did, where there is one. one_code:
    the system whose published code ran under this name too. scores: so many whole score matrices
    are in memory at once. fused: the same attention without its scores written down, given beside
    every comparison.
    """

    name: str
    variant: VariantName
    also: list[VariantName] = []
    replica: VariantName | None = None
    one_code: SystemName | None = None
    scores: int = 0
    fused: SystemName | None = None
    beside: VariantName | None = None
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


class History(Strict):
    """What the public history of the code shows, by reading it or by running it on a CPU."""

    verdict: Literal[HOLDS, FAILS, UNDECIDED]
    reason: str


class Source(Strict):
    """Where a write-up of a repository stands, and the code that it reports on."""

    repository: str
    file: str
    commit: str = Field(pattern=r"^[0-9a-f]{7,40}$")
    date: str
    script: str

    @property
    def url(self) -> str:
        """The write-up at its commit."""
        return f"https://github.com/{self.repository}/blob/{self.commit}/{self.file}"


class Paper(Strict):
    """Where a write-up is a paper, whose places are sections and tables; its code is not judged."""

    title: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{5}$")
    date: str

    @property
    def url(self) -> str:
        """Its page, with all versions."""
        return f"https://arxiv.org/abs/{self.arxiv}"


class Headline(Strict):
    """A finding of the write-ups that other things depend on.

    title: the statement, in our words. published: its figure, as printed. decided_by: ids of the
    claims that it stands or falls with, all of them. groups: patterns of ids, of all that states it
    again or is a cell of it. why: what a reader has to know, in a line.
    """

    title: str
    published: str
    decided_by: list[str] = Field(min_length=1)
    groups: list[str] = []
    why: str


class Writeup(Strict):
    """branches: length -> [segment length, dilation rate] pairs used there, where stated.

    source, paper: one of them. experiment: what it is judged by; null where every system that it
    mentions names its own. card: what its figures were taken on; none of a paper that says nothing
    of it.
    """

    source: Source | None = None
    paper: Paper | None = None
    experiment: str | None
    card: CardName | None = None
    conditions: Shape
    branches: dict[int, list[list[int]]] = {}
    stand_ins: list[Shape] = []

    @model_validator(mode="after")
    def _of_one_origin(self) -> Writeup:
        if (self.source is None) == (self.paper is None):
            raise ValueError("source, paper: expected one of them")
        if self.paper is None and self.card is None:
            raise ValueError("card: missing")
        return self

    @property
    def origin(self) -> Source | Paper:
        """Where it stands."""
        return self.source or self.paper
