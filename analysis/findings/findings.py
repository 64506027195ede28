"""`paper/findings.yaml`, and what the records of one machine say of each finding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from analysis.claims.criteria import exponent, judged_ratio
from analysis.records import learnt
from analysis.selection import views
from analysis.statistics.intervals import Interval, speedup
from experiments.case import Case, CaseError
from experiments.grid import applicable
from experiments.procedures import case_from
from experiments.training.recipes import ORDERS
from models.registry import VARIANTS

HOLDS, NOT, UNDECIDED, MISSING = (
    "holds",
    "does not hold",
    "undecided",
    "not measured here",
)
VERDICTS = (HOLDS, NOT, UNDECIDED, MISSING)
GROWTH = {"time growth": "time", "memory growth": "memory"}
# Of two systems, with the unit.
_PAIRS = {
    "speedup": "x",
    "memory ratio": "x",
    "loss difference": " bits",
    "accuracy difference": "",
}
# Of trainings, with intervals over seeds; the last ones over a model of so many bytes.
_OVER = "loss over order "
_LEARNT = (*learnt.MEASURES, *(f"{one} difference" for one in learnt.MEASURES))
_LEARNT += tuple(f"{_OVER}{order}" for order in ORDERS)


class FindingsError(ValueError):
    """A file of findings that cannot be used: names the finding and the field."""


class Finding(BaseModel):
    """One finding, as the file has it.

    quick: whether the quick cases of a tier are enough to judge it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    title: str
    published: float | None
    quantity: str
    system: dict
    against: dict | None = None
    shape: dict
    by_device: dict[Literal["cpu", "cuda"], dict] = {}
    lengths: list[int] = Field(default=[], max_length=12)
    above: float = -math.inf
    below: float = math.inf
    quick: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Finding:
        if (self.quantity in _PAIRS) != (self.against is not None):
            told = "a speedup, memory ratio or difference"
            raise ValueError(f"against: expected for {told}, and only there")
        if (self.quantity in GROWTH) != bool(self.lengths):
            raise ValueError("lengths: expected for a growth, and only there")
        if not self.above < self.below:
            raise ValueError("above: expected a bound below `below`")
        self.cases("cpu"), self.cases("cuda")
        return self

    @property
    def unit(self) -> str:
        """What stands behind its values."""
        return _PAIRS.get(self.quantity, " bits" if self.quantity == learnt.LOSS else "")

    @property
    def is_learnt(self) -> bool:
        """Whether trainings say it, by seeds and not by rounds."""
        return self.quantity in _LEARNT

    @property
    def words(self) -> str:
        """The title, and which cases it takes where the quick ones do not suffice."""
        return self.title if self.quick else f"{self.title} (full tier)"

    @property
    def expected(self) -> str:
        """The bounds in words."""
        low, high = f"{self.above:g}", f"{self.below:g}"
        if math.isinf(self.below):
            return f"above {low}{self.unit}"
        if math.isinf(self.above) or self.above < 0:
            return f"below {high}{self.unit}"
        return f"{low} to {high}{self.unit}"

    def cases(self, device_kind: str) -> list[Case]:
        """Those that it needs on a device: of the system by length, or the system's and the other.

        Raises ValueError on fields that make no case.
        """
        shape = {**self.shape, **self.by_device.get(device_kind, {})}
        sides = [self.system] + ([self.against] if self.against else [])
        lengths = shape.pop("lengths", self.lengths)
        points = [{**shape, "seq_len": n} for n in lengths] or [shape]
        return [_case({**point, **side}) for side in sides for point in points]


def _case(fields: Mapping) -> Case:
    """Of those of the fields that apply to its variant."""
    variant = fields.get("variant")
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: is none")
    try:
        return case_from(applicable(variant, fields))
    except CaseError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Result:
    """A finding by the records of one machine.

    value: with its interval, None without records. missing: names of cases that are
    not there, or have no time. paths: of the records, newest first. rounds: the fewest of a case.
    device: what the machine is, in short; "" without records.
    """

    verdict: str
    value: Interval | None
    missing: tuple[str, ...]
    paths: tuple[str, ...]
    rounds: int
    device: str


def load(path: Path) -> list[Finding]:
    """The findings of a file, in its order; FindingsError names what is wrong."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise FindingsError(f"{path}: not YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise FindingsError(f"{path}: expected a list of findings")
    found = []
    for number, entry in enumerate(entries, start=1):
        name = (
            entry.get("id", f"number {number}") if isinstance(entry, dict) else f"number {number}"
        )
        try:
            found.append(Finding.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise FindingsError(f"{path}: {name}: {field or 'fields'}: {first['msg']}") from error
    ids = [one.id for one in found]
    twice = {one for one in ids if ids.count(one) > 1}
    if twice:
        raise FindingsError(f"{path}: {min(twice)}: is there twice")
    return found


def judge(finding: Finding, rows: Mapping[str, pd.Series], device_kind: str) -> Result:
    """What `rows`, by name of case and of one machine, say of a finding."""
    names = [case.name for case in finding.cases(device_kind)]
    found = [rows.get(name) for name in names]
    missing = tuple(
        name for name, row in zip(names, found, strict=True) if row is None or row["status"] != "ok"
    )
    if missing:
        return Result(MISSING, None, missing, (), 0, "")
    value = _value(finding, found)
    paths = tuple(dict.fromkeys(path for row in found for path in row["paths"]))
    rounds = min(row["rounds"] for row in found)
    verdict, device = _verdict(finding, value), views.device(found[0])
    return Result(verdict, value, (), paths, rounds, device)


def _value(finding: Finding, rows: list[pd.Series]) -> Interval:
    first = rows[0]
    if finding.quantity in GROWTH:
        return exponent(rows, GROWTH[finding.quantity])
    if finding.quantity == "speedup":
        other = rows[1]
        return judged_ratio(speedup(other["samples"], first["samples"], first["spread"]))
    if finding.quantity == "memory ratio":
        return Interval.exact(rows[1]["peak_memory_bytes"] / first["peak_memory_bytes"])
    if finding.is_learnt:
        return _learnt(finding.quantity, *rows)
    if finding.quantity not in first or not math.isfinite(first[finding.quantity]):
        raise FindingsError(f"{finding.id}: the record has no number {finding.quantity!r}")
    return Interval.exact(float(first[finding.quantity]))


def _learnt(quantity: str, row: pd.Series, base: pd.Series | None = None) -> Interval:
    """Over seeds, after all steps: of a system, less another one, or over an n-gram model."""
    measure = quantity.partition(" ")[0]
    if base is not None:
        return learnt.difference(row, base, measure)
    found = learnt.interval(row, measure)
    if quantity.startswith(_OVER):
        return found.over(row["learning"].n_gram_losses[quantity.removeprefix(_OVER)])
    return found


def _verdict(finding: Finding, value: Interval) -> str:
    if finding.is_learnt and math.isnan(value.low):  # of one seed, after which any may follow
        return UNDECIDED
    low, high = (value.value,) * 2 if math.isnan(value.low) else (value.low, value.high)
    if finding.above < low and high < finding.below:
        return HOLDS
    return NOT if high <= finding.above or low >= finding.below else UNDECIDED
