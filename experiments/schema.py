"""The record of one case in one round, as a pydantic model.

`record.schema.json` is generated from it.

The runner writes plain dictionaries, so that it needs no pydantic; whatever reads records goes
through `experiments.gate`, of which this is the part that looks at one field after another.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from functools import lru_cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from experiments.case import Case, CaseError
from experiments.field_types import (
    MOST_BYTES,
    MOST_MS,
    Bits,
    BusId,
    Bytes,
    CardUuid,
    Commit,
    Count,
    Distance,
    Hex8,
    Hex16,
    Hex64,
    InstanceUuid,
    Megahertz,
    Milliseconds,
    Name,
    Share,
    Span,
    Text,
    Time,
    Watts,
)
from experiments.grid import TIERS
from experiments.procedures import PROCEDURES, case_classes, class_of
from experiments.provenance import command
from experiments.record import SCHEMA_VERSION, RecordError, parse
from experiments.shown import shown
from models.registry import VARIANTS


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False
    )


def _case_fields(case_class: type[Case]) -> type[BaseModel]:
    """The model of a record's `case` object: the fields of a class of cases without `variant`."""
    hints, made = get_type_hints(case_class), {}
    for f in fields(case_class):
        if f.name != "variant":
            said = dict(f.metadata)
            choices = said.pop("one_of", None)
            hint = Literal[choices] if choices else hints[f.name]
            if hint == tuple[int, ...] | None:
                # JSON has lists.
                hint = Annotated[tuple[int, ...], Field(strict=False)] | None
            # What a class has beyond `Case` is always there: by it the two are told apart.
            is_needed = f.default is MISSING or f.name not in _COMMON
            default = ... if is_needed else f.default
            alias = {"alias": f.name.rstrip("_")} if f.name.endswith("_") else {}
            made[f.name] = (hint, Field(default, **said, **alias))
    return create_model(f"{case_class.__name__}Fields", __base__=_Strict, **made)


_COMMON = {one.name for one in fields(Case)}
_CASE_FIELDS = {one: _case_fields(one) for one in case_classes()}
_CLASS_OF = {made: one for one, made in _CASE_FIELDS.items()}


def _tag(given: object) -> str:
    """The class of cases that a record's `case` object, whatever it is, is read as."""
    keys = given if isinstance(given, dict) else getattr(type(given), "model_fields", ())
    return _class_named(tuple(keys))


# Thousands of records have the same keys.
@lru_cache(maxsize=64)
def _class_named(keys: tuple[str, ...]) -> str:
    return class_of(keys).__name__


CaseFields = Annotated[
    reduce(or_, (Annotated[made, Tag(one.__name__)] for one, made in _CASE_FIELDS.items())),
    Discriminator(_tag),
]


class Rank(_Strict):
    """One rank of a replicate, in the timed repeat whose wall time is the median."""

    rank: int = Field(ge=0)
    bytes_sent: Bytes = Field(description="to other ranks, without the agreement")
    messages_sent: Bytes
    agreement_bytes: Bytes = Field(description="sent for the check at the start of a call")
    compute_ms: list[Span] = Field(description="of each hop in order, its own keys first")
    wait_ms: list[Span] = Field(description="each time it waited for others; none if simulated")
    peak_memory_bytes: Bytes | None = Field(
        description="less the inputs; null where it was not measured"
    )


class Calls(_Strict):
    """What a procedure without warm-up, true peaks and touched workspaces would have reported.

    Of a replica: the first calls in its process, then what is still held after one.
    """

    first_ms: Milliseconds = Field(description="wall time of the very first call, ms")
    first_peak_bytes: Bytes | None = Field(description="peak of that call less the inputs")
    second_peak_bytes: Bytes | None = Field(description="of the next, identical call")
    kept_bytes: Bytes = Field(description="tensors made by a call and alive after it")
    dropped_bytes: Bytes = Field(description="the same once the output is let go")


class Range(_Strict):
    """The asked tokens of one range of positions, or of distances back to the answer."""

    first: int = Field(ge=0, le=2**62, description="the last is twice the first, less one")
    tokens: Count
    loss: Bits
    accuracy: Share


class Evaluated(_Strict):
    """What a model makes of the validation batches after a step."""

    step: Count
    loss: Bits
    accuracy: Share


class Training(_Strict):
    """One training of a model, from weights and an order of the data drawn by its seed."""

    seed: int = Field(ge=0, le=2**32)
    steps: Count
    steps_s: float = Field(gt=0, le=MOST_MS / 1e3, description="in steps, seconds")
    step_losses: list[Bits] = Field(
        min_length=1,
        max_length=100,
        description="bits per asked token of the batches, means of equally many steps in order",
    )
    evaluations: list[Evaluated] = Field(min_length=1, max_length=100)
    tokens: Count = Field(description="asked in an evaluation")
    by_position: list[Range] = Field(
        max_length=64, description="of the last evaluation, by the place in the row, from 1"
    )
    by_distance: list[Range] = Field(
        max_length=64, description="likewise, by the tokens back to where the answer stands"
    )


class Package(_Strict):
    """One that a corpus is made of."""

    name: Name
    version: Name
    licence: Text
    files: int = Field(ge=0)
    bytes: Bytes


class Learning(_Strict):
    """What is learnt, and what others make of it."""

    source: Name
    sha256: Hex64 | None = Field(description="of a corpus")
    packages: Annotated[list[Package], Field(max_length=64)] | None
    facts: dict[Name, int | float | Name] = Field(
        max_length=32, description="of a task, chance_accuracy among them; sizes of a corpus"
    )
    parameters: Count = Field(description="of the model")
    n_gram_losses: dict[Name, Bits] | None = Field(
        description="bits per byte on the validated text of Kneser-Ney models of the training "
        "text, by order; null where no text is learnt"
    )


class Replicate(_Strict):
    """One fresh process."""

    samples_ms: list[Milliseconds] = Field(
        default=[], description="wall time of each timed repeat, ms; none where that is not timed"
    )
    peak_memory_bytes: Bytes | None = Field(
        description="true peak of an untimed pass less the inputs"
    )
    source_ms: list[Span] | None = Field(
        default=None,
        description="of each timed repeat the time in its source, which samples_ms is without; "
        "null unless streamed",
    )
    timed_by: Literal["queued events", "events"] | None = Field(
        default=None,
        description="on a GPU: events around a pass, all of it queued before the card came to it, "
        "or without a queue, so that samples hold what the card waited for the host; null on a "
        "CPU, over ranks, streamed, and in records older than the field",
    )
    host_ms: Span | None = Field(
        default=None,
        description="median time of the host to issue one pass, which queued samples are without; "
        "it may hold waits for the card where the pass waits itself; null where timed_by is",
    )
    energy_j: Annotated[float, Field(gt=0, le=1e9)] | None = None
    ranks: list[Rank] | None = Field(
        default=None,
        description="null unless over ranks; of a simulated ring one is timed",
    )
    calls: Calls | None = Field(default=None, description="null unless of a replica")
    trainings: Annotated[list[Training], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="null unless models were trained; samples are then of steps"
    )


class Agreement(_Strict):
    """Distance from the float64 oracle, beside that of dense attention in the same dtype."""

    max_abs: Distance
    relative_rms: Distance = Field(
        description="of an output, over rows the root mean square of each one's error relative to "
        "its own size; of a gradient, and of outputs in records without a host, of all at once"
    )
    baseline_relative_rms: Distance = Field(description="the same of dense attention")


class Error(_Strict):
    reference: Text
    rows_checked: int = Field(ge=1, description="query rows per batch element")
    output: Agreement
    gradient: Agreement | None = Field(
        description="null on the forward pass, and of gradients that are not those of the values"
    )


class Deviation(_Strict):
    """How a replica's output differs from the attention it was named after. Null: not finite."""

    variant: Text = Field(description="the exact system")
    max_abs: Distance | None = Field(description="from its float64 oracle, on the checked rows")
    relative_rms: Distance | None = Field(description="likewise, over the oracle's own")
    zero_rows: float = Field(ge=0, le=1, description="share of (position, head) that is zero")
    weight_sum_low: float | None = Field(
        description="least sum of a row's weights, rows of zeros left out; 1 in attention"
    )
    weight_sum_high: float | None = Field(description="the largest")
    of_other_tokens: Distance | None = Field(
        description="largest change at position 0 when every other token is drawn anew"
    )
    of_future_tokens: Distance | None = Field(
        description="when causal: largest change in the first half when the second is drawn anew"
    )


class Ceilings(_Strict):
    """What the device does at best in the case's dtype, measured within a minute of the case.

    On a GPU cases share them: one process makes their references and measures once per minute.
    """

    matmul_flops_per_s: float = Field(gt=0, description="square matrix product, FLOP/s")
    copy_bytes_per_s: float = Field(gt=0, description="bytes read and written per second")


class Gauge(_Strict):
    """The same three things measured all through a round, by which a drift shows.

    Best of a few repeats each, in milliseconds.
    """

    dense_ms: Milliseconds = Field(
        description="causal dense attention over 1,024 tokens, on a GPU 8,192"
    )
    matmul_ms: Milliseconds = Field(description="square matrix product")
    copy_ms: Milliseconds


class Gauges(_Strict):
    """The gauge before a case and after it; those of neighbours are the same."""

    before: Gauge
    after: Gauge


class Host(_Strict):
    """What tells a machine's hosts apart, and one start of a host from the next."""

    id: Hex8 = Field(description="8 hex digits over all of these")
    family: int | None = Field(description="of the CPU, as /proc/cpuinfo has it; null if unknown")
    model: int | None
    stepping: int | None
    caches: dict[Name, Bytes] = Field(description="bytes by level: L1d, L1i, L2, L3")
    boot: Hex8 | None = Field(description="8 hex digits of a hash of the kernel's boot id")


class Card(_Strict):
    """A card that a case was measured on, as found just before; null where not told."""

    instance: InstanceUuid | None = Field(description="of MIG; null where the whole card was held")
    index: Annotated[int, Field(ge=0, le=1023)] | None = Field(description="by the driver's count")
    uuid: CardUuid
    bus_id: BusId | None = Field(description="of PCI")
    sm_mhz: Megahertz | None = Field(description="clock of its multiprocessors, then")
    memory_mhz: Megahertz | None
    max_sm_mhz: Megahertz | None
    max_memory_mhz: Megahertz | None
    application_sm_mhz: Megahertz | None = Field(description="asked for by whoever set the card up")
    application_memory_mhz: Megahertz | None
    power_limit_w: Watts | None
    ecc: bool | None
    mig: bool | None = Field(description="whether it is divided into instances")


class Machine(_Strict):
    id: Name = Field(description="follows from device and cpu; of a CPU from cores and memory too")
    host: Host | None = Field(description="null in records older than the field")
    device: Name
    device_kind: Literal["cpu", "cuda"]
    driver: Name | None
    cpu: Name
    cores: int = Field(ge=1, le=4096)
    memory_bytes: int = Field(gt=0, le=MOST_BYTES)
    device_memory_bytes: Bytes = Field(description="0 where the card uses the machine's")
    system: Name
    cards: Annotated[list[Card], Field(min_length=1, max_length=1024)] | None = Field(
        default=None,
        description="those that the case held; null on a CPU, where the driver told nothing of "
        "them, and in records older than the field; of several nodes one after another",
    )
    nodes: int = Field(
        default=1, ge=1, le=1024, description="over which its ranks were spread, as many on each"
    )


class Software(_Strict):
    python: Name
    numpy: Name
    torch: Name
    cuda: Name | None
    triton: Name | None
    flash_attn: Name | None
    git_commit: Commit | None
    git_dirty: bool | None
    code_digest: Hex16
    tile_tables: Hex16 | None = Field(
        default=None,
        description="digest of the tables of tiles in the place of the repository's own; "
        "null where those were used",
    )


class Record(_Strict):
    schema_version: Literal[2]
    tier: Literal[TIERS] = Field(
        description="whose limits of time and number it was measured within"
    )
    variant: Name
    case: CaseFields
    status: Literal["ok", "oom", "timeout", "unsupported", "failed"]
    reason: Text | None = Field(description="null exactly when status is ok")
    cause: Literal["case", "day"] | None = Field(
        default=None,
        description="of a status other than ok, whether it lies in the case or in the day (killed, "
        "disk full, late or without memory on a busy machine), which the next run measures again; "
        "null in records older than the field",
    )
    backend: Name | None = Field(description="what ran; null when nothing did")
    realised_density: Annotated[float, Field(gt=0)] | None = Field(
        description="query-key pairs computed / pairs that dense attention computes"
    )
    useful_flops: Annotated[int, Field(gt=0, le=10**24)] | None = Field(
        description="FLOPs per pass of the pairs the pattern needs"
    )
    ceilings: Ceilings | None = Field(
        default=None, description="null where nothing ran, and in records older than the field"
    )
    replicates: list[Replicate]
    error: Error | None
    gauges: Gauges | None = Field(
        default=None, description="null where none were taken, and in records older than the field"
    )
    deviation: Deviation | None = Field(default=None, description="null unless of a replica")
    learning: Learning | None = Field(default=None, description="null unless models were trained")
    machine: Machine
    software: Software
    started_at: Time
    wall_s: float = Field(ge=0, le=MOST_MS / 1e3)
    command: Text = Field(
        description="follows from tier and case, and is not read from the record: "
        "in those without a host it is of another form"
    )
    _case: Case = PrivateAttr()

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant: is {self.variant!r}, and there is no such variant")
        try:
            fields = {"variant": self.variant, **self.case.model_dump(by_alias=True)}
            self._case = _CLASS_OF[type(self.case)].from_mapping(fields)
        except CaseError as error:
            raise ValueError(f"case: {error}") from error
        if (self.status == "ok") != (self.reason is None):
            raise ValueError("reason: expected null exactly when status is ok")
        if self.status == "ok" and self.cause is not None:
            raise ValueError("cause: expected null when status is ok")
        if self.status == "ok":
            if not any(one.is_in(self.replicates) for one in PROCEDURES.values()):
                results = " or ".join({one.result: None for one in PROCEDURES.values()})
                raise ValueError(f"replicates: expected {results} when status is ok")
            for name in ("error", "backend", "realised_density", "useful_flops"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: is null, which it may not be when status is ok")
            has_none = (
                self.case.pass_ == "forward" or not VARIANTS[self.variant].has_exact_gradients
            )
            if (self.error.gradient is None) != has_none:
                raise ValueError("error.gradient: expected null exactly where none is checked")
        else:
            for name in ("replicates", "error"):
                if getattr(self, name):
                    raise ValueError(f"{name}: expected none where status is {self.status}")
        return self

    def to_case(self) -> Case:
        return self._case

    @property
    def command_line(self) -> str:
        """The command that makes the record: what is written in it is not looked at."""
        return command(self.tier, self._case)


def load(path: Path) -> Record:
    """Read one record and validate its fields; RecordError names the file and the field."""
    return check(parse(Path(path)), path)


def check(data: object, name: Path | str) -> Record:
    """The record that `data`, read from JSON, is; RecordError names `name` and the field."""
    name = shown(name)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise RecordError(
            f"{name}: schema_version: is {shown(repr(version)[:80])}, "
            f"this code reads {SCHEMA_VERSION}"
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        loc = first["loc"]
        # Behind the case stands the class that it was read as.
        loc = (*loc[:1], *loc[2:]) if loc[:1] == ("case",) else loc
        field = ".".join(map(str, loc))
        told = f"{field or 'record'}: {first['msg']}"
        if not field and "error" in first.get("ctx", {}):
            # Of a whole record: it names the field.
            told = str(first["ctx"]["error"])
        raise RecordError(f"{name}: {shown(told)}") from None


def json_schema() -> str:
    """The text of `experiments/record.schema.json`."""
    return json.dumps(Record.model_json_schema(), indent=2) + "\n"
