"""The one gate for records: whoever wrote them, whatever reads them reads them through it.

A file is a record that counts if it is a small regular file of strict JSON (`record.parse`), has
the fields of a record (`schema`), numbers that can be (`plausible`), and lies where it belongs.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from experiments import grid, plausible, rounds
from experiments.case import Case
from experiments.procedures import PROCEDURES, Procedure
from experiments.record import RecordError, parse
from experiments.schema import Record, check
from experiments.shown import shown

# A round is a pass over the cases, which lie close together in time.
_ROUND_TAKES = timedelta(days=30)


@dataclass
class Sifted:
    """records: those that passed, by path, in its order. left_out: a line of each other file."""

    records: dict[Path, Record] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without a search for garbage meanwhile: of thousands of records that stay, it finds none.

    It takes a third of the time of reading 10,000.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@uncollected()
def sift(roots: Iterable[Path]) -> Sifted:
    """What lies at or under `roots`, folders or files: no file keeps another from being read."""
    found, measured = Sifted(), {}
    for root in roots:
        for path in rounds.record_files(root):
            if path in found.records:
                continue
            try:
                one = admit(path, root)
            except RecordError as error:
                found.left_out.append(str(error))
                continue
            # In `local` and in `published` the same may lie.
            base, _, round_ = _place(path)
            places = (base, one.machine.id, one.to_case())
            keys = [(*places, one.started_at), (*places, round_)]
            # What was set aside of one round may be of several codes.
            for key in keys[:1] if base == rounds.OUTDATED else keys:
                if measured.setdefault(key, path) != path:
                    told = f"started_at: it is the measurement in {shown(measured[key])} again"
                    found.left_out.append(f"{shown(path)}: {told}")
                    break
            else:
                found.records[path] = one
    return found


def admit(path: Path, root: Path) -> Record:
    """The record at `path`, found at or under `root`; RecordError names the file and the field."""
    found = check(parse(path), path)
    _check_place(path, root, found)
    check_result(path, found)
    return found


def _place(path: Path) -> tuple[str, str, str]:
    """The names of the folder of all machines, of the machine and of the round.

    What was set aside lies in a folder of the machine's, which then stands in the first place.
    """
    parts = path.parts
    if len(parts) < 4 or ".." in parts:
        parts = ("", "", "", *Path(os.path.abspath(path)).parts)
    base, machine, round_ = parts[-4:-1]
    return (machine, base, round_) if machine == rounds.OUTDATED else (base, machine, round_)


def _check_place(path: Path, root: Path, found: Record) -> None:
    """RecordError unless a record lies at machine/round/case.json, and under `root` no deeper."""
    base, machine, round_ = _place(path)

    def need(is_right: object, told: str) -> None:
        if not is_right:
            raise RecordError(f"{shown(path)}: {told}")

    # What was set aside has a time behind the name of its case.
    case = path.stem.partition("@")[0] if base == rounds.OUTDATED else path.stem
    depth = len(path.parts) - len(root.parts)
    need(depth <= 3, "place: lies deeper than machine/round/case.json")
    for what, is_there, expected in (
        ("case", case, found.to_case().name),
        ("machine.id", machine, found.machine.id),
    ):
        need(is_there == expected, f"{what}: belongs at {shown(expected)}, not {shown(is_there)}")
    began = _begun(round_)
    is_local = rounds.LOCAL_NAME.fullmatch(round_) and base != "published"
    need(began or is_local, f"place: expected a round's folder, not {shown(round_)}")
    if began:
        is_in = began <= found.started_at < began + _ROUND_TAKES
        need(is_in, f"started_at: is {found.started_at}, which is not in the round {round_}")


@cache
def _begun(round_: str) -> datetime | None:
    """When a published round began, by its name; None of what is no such name."""
    with suppress(ValueError):
        if rounds.PUBLISHED_NAME.fullmatch(round_):
            return datetime.strptime(round_, rounds.PUBLISHED_FORM).replace(tzinfo=UTC)
    return None


def check_result(name: Path | str, found: Record) -> None:
    """RecordError unless the case is a point of a grid, and the record can be one of it."""
    procedure = _procedure(found.to_case())
    if procedure is None:
        raise RecordError(f"{shown(name)}: case: is a point of no grid")
    fault = next(plausible.faults(found, procedure), None)
    if fault:
        raise RecordError(f"{shown(name)}: {fault}")


@cache
def _procedure(case: Case) -> Procedure | None:
    """What measures a case of a grid; None of any other."""
    experiments = grid.experiments_of(case)
    if not experiments:
        return None
    return _of_variant(experiments[0], case.variant)


# Of a few, for all of their cases: to read a grid takes longer than to look at a record.
@cache
def _of_variant(experiment: str, variant: str) -> Procedure:
    return PROCEDURES[grid.load(experiment).procedure(variant)]
