"""The record of one case in one round, as a pydantic model.

`record.schema.json` is generated from it.

The runner writes plain dictionaries, so that it needs no pydantic; whatever
reads records goes through `load`.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from datetime import datetime
from pathlib import Path
from typing import Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from experiments.case import Case, CaseError
from experiments.procedures import PROCEDURES
from experiments.record import SCHEMA_VERSION, RecordError


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


def _case_fields() -> type[BaseModel]:
    """The model of a record's `case` object: the fields of `Case` without `variant`."""
    hints, made = get_type_hints(Case), {}
    for f in fields(Case):
        if f.name != "variant":
            said = dict(f.metadata)
            choices = said.pop("one_of", None)
            hint = Literal[choices] if choices else hints[f.name]
            default = ... if f.default is MISSING else f.default
            alias = {"alias": f.name.rstrip("_")} if f.name.endswith("_") else {}
            made[f.name] = (hint, Field(default, **said, **alias))
    return create_model("CaseFields", __base__=_Strict, **made)


CaseFields = _case_fields()


class Rank(_Strict):
    """One rank of a replicate, in the timed repeat whose wall time is the median."""

    rank: int = Field(ge=0)
    bytes_sent: int = Field(ge=0, description="to other ranks, without the agreement")
    messages_sent: int = Field(ge=0)
    agreement_bytes: int = Field(ge=0, description="sent for the check at the start of a call")
    compute_ms: list[float] = Field(description="of each hop in order, its own keys first")
    wait_ms: list[float] = Field(description="each time it waited for others; none if simulated")
    peak_memory_bytes: int | None = Field(
        description="less the inputs; null where it was not measured"
    )


class Calls(_Strict):
    """What a procedure without warm-up, true peaks and touched workspaces would have reported.

    Of a replica: the first calls in its process, then what is still held after one.
    """

    first_ms: float = Field(ge=0, description="wall time of the very first call, ms")
    first_peak_bytes: int | None = Field(description="peak of that call less the inputs")
    second_peak_bytes: int | None = Field(description="of the next, identical call")
    kept_bytes: int = Field(ge=0, description="tensors made by a call and alive after it")
    dropped_bytes: int = Field(ge=0, description="the same once the output is let go")


class Replicate(_Strict):
    """One fresh process."""

    samples_ms: list[float] = Field(
        default=[], description="wall time of each timed repeat, ms; none where that is not timed"
    )
    peak_memory_bytes: int | None = Field(
        description="true peak of an untimed pass less the inputs"
    )
    source_ms: list[float] | None = Field(
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
    host_ms: float | None = Field(
        default=None,
        ge=0,
        description="median time of the host to issue one pass, which queued samples are without; "
        "it may hold waits for the card where the pass waits itself; null where timed_by is",
    )
    energy_j: float | None = None
    ranks: list[Rank] | None = Field(
        default=None,
        description="null unless over ranks; of a simulated ring one is timed",
    )
    calls: Calls | None = Field(default=None, description="null unless of a replica")


class Agreement(_Strict):
    """Distance from the float64 oracle, beside that of dense attention in the same dtype."""

    max_abs: float
    relative_rms: float = Field(
        description="of an output, over rows the root mean square of each one's error relative to "
        "its own size; of a gradient, and of outputs in records without a host, of all at once"
    )
    baseline_relative_rms: float = Field(description="the same of dense attention")


class Error(_Strict):
    reference: str
    rows_checked: int = Field(ge=1, description="query rows per batch element")
    output: Agreement
    gradient: Agreement | None = Field(description="null on the forward pass")


class Deviation(_Strict):
    """How a replica's output differs from the attention it was named after. Null: not finite."""

    variant: str = Field(description="the exact system")
    max_abs: float | None = Field(description="from its float64 oracle, on the checked rows")
    relative_rms: float | None = Field(description="likewise, over the oracle's own")
    zero_rows: float = Field(ge=0, le=1, description="share of (position, head) that is zero")
    weight_sum_low: float | None = Field(
        description="least sum of a row's weights, rows of zeros left out; 1 in attention"
    )
    weight_sum_high: float | None = Field(description="the largest")
    of_other_tokens: float | None = Field(
        description="largest change at position 0 when every other token is drawn anew"
    )
    of_future_tokens: float | None = Field(
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

    dense_ms: float = Field(
        gt=0, description="causal dense attention over 1,024 tokens, on a GPU 8,192"
    )
    matmul_ms: float = Field(gt=0, description="square matrix product")
    copy_ms: float = Field(gt=0)


class Gauges(_Strict):
    """The gauge before a case and after it; those of neighbours are the same."""

    before: Gauge
    after: Gauge


class Host(_Strict):
    """What tells a machine's hosts apart, and one start of a host from the next."""

    id: str = Field(description="8 hex digits over all of these")
    family: int | None = Field(description="of the CPU, as /proc/cpuinfo has it; null if unknown")
    model: int | None
    stepping: int | None
    caches: dict[str, int] = Field(description="bytes by level: L1d, L1i, L2, L3")
    boot: str | None = Field(description="8 hex digits of a hash of the kernel's boot id")


class Machine(_Strict):
    id: str
    host: Host | None = Field(description="null in records older than the field")
    device: str
    device_kind: Literal["cpu", "cuda"]
    driver: str | None
    cpu: str
    cores: int = Field(ge=1)
    memory_bytes: int
    device_memory_bytes: int
    system: str


class Software(_Strict):
    python: str
    numpy: str
    torch: str
    cuda: str | None
    triton: str | None
    flash_attn: str | None
    git_commit: str | None
    git_dirty: bool | None
    code_digest: str
    tile_tables: str | None = Field(
        default=None,
        description="digest of the tables of tiles in the place of the repository's own; "
        "null where those were used",
    )


class Record(_Strict):
    schema_version: Literal[2]
    tier: str = Field(description="whose limits of time and number it was measured within")
    variant: str
    case: CaseFields
    status: Literal["ok", "oom", "timeout", "unsupported", "failed"]
    reason: str | None = Field(description="null exactly when status is ok")
    cause: Literal["case", "day"] | None = Field(
        default=None,
        description="of a status other than ok, whether it lies in the case or in the day (killed, "
        "disk full, late or without memory on a busy machine), which the next run measures again; "
        "null in records older than the field",
    )
    backend: str | None = Field(description="what ran; null when nothing did")
    realised_density: float | None = Field(
        description="query-key pairs computed / pairs that dense attention computes"
    )
    useful_flops: int | None = Field(description="FLOPs per pass of the pairs the pattern needs")
    ceilings: Ceilings | None = Field(
        default=None, description="null where nothing ran, and in records older than the field"
    )
    replicates: list[Replicate]
    error: Error | None
    gauges: Gauges | None = Field(
        default=None, description="null where none were taken, and in records older than the field"
    )
    deviation: Deviation | None = Field(default=None, description="null unless of a replica")
    machine: Machine
    software: Software
    started_at: datetime
    wall_s: float
    command: str

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if (self.status == "ok") != (self.reason is None):
            raise ValueError("reason: expected null exactly when status is ok")
        if self.status == "ok" and self.cause is not None:
            raise ValueError("cause: expected null when status is ok")
        if self.status == "ok":
            if not any(one.is_in(self.replicates) for one in PROCEDURES.values()):
                results = " or ".join({one.result: None for one in PROCEDURES.values()})
                raise ValueError(f"replicates: expected {results} when status is ok")
            if self.error is None:
                raise ValueError("error: expected a correctness check when status is ok")
        try:
            self.to_case()
        except CaseError as error:
            raise ValueError(f"case: {error}") from error
        return self

    def to_case(self) -> Case:
        return Case.from_mapping({"variant": self.variant, **self.case.model_dump(by_alias=True)})


def load(path: Path) -> Record:
    """Read and validate one record; RecordError names the file and the field."""
    return check(read_json(Path(path)), path)


def read_json(path: Path, name: Path | str | None = None) -> object:
    """What the JSON file at `path` holds; RecordError, under `name`, where it is none."""
    try:
        return json.loads(path.read_bytes().decode())
    except RecursionError:
        raise RecordError(f"{name or path}: not JSON that can be read: nested too deeply") from None
    # Of bytes that are no text, of text that is no JSON, and of a number of 4,300 digits.
    except ValueError as error:
        raise RecordError(f"{name or path}: not JSON (truncated?): {error}") from error


def check(data: object, name: Path | str) -> Record:
    """The record that `data`, read from JSON, is; RecordError names `name` and the field."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{name}: schema_version: is {version!r}, this code reads {SCHEMA_VERSION}"
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "record"
        raise RecordError(f"{name}: {field}: {first['msg']}") from error


def json_schema() -> str:
    """The text of `experiments/record.schema.json`."""
    return json.dumps(Record.model_json_schema(), indent=2) + "\n"
