"""From `results/local` to `results/published`: validated, complete, by committed code."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from experiments import grid as grids
from experiments import record, rounds
from experiments.archive import MANIFEST
from experiments.digest import ROOT
from experiments.procedures import PROCEDURES
from experiments.schema import Record, load
from models.registry import VARIANTS

PUBLISHED = ROOT / "results" / "published"


def record_paths(root: Path) -> list[Path]:
    """All records at or under `root`, sorted; RecordError if there is none."""
    if not root.exists():
        raise record.RecordError(f"{root}: no such file or folder")
    if (root / MANIFEST).is_file():
        raise record.RecordError(f"{root}: is a campaign's folder: name the .tar.xz in it")
    paths = rounds.record_files(root)
    if not paths:
        raise record.RecordError(f"{root}: no records (*.json) there")
    return paths


def validate(root: Path) -> tuple[int, list[str]]:
    """How many records at or under `root` are valid, and what is wrong with the others."""
    valid, problems = 0, []
    for path in record_paths(root):
        try:
            check_place(path, load(path))
            valid += 1
        except (record.RecordError, grids.GridError) as error:
            problems.append(str(error))
    return valid, problems


def publish(root: Path, published: Path = PUBLISHED) -> list[Path]:
    """Copy every record under `root` to `published`; RecordError, before any copy, if one may not.

    A record may be published when it is valid, is no smoke test, was made by committed code,
    has not failed, unless it is of a peer, and takes no other record's place: a round is
    measured whole, and another one lies beside it.
    """
    records = {path: load(path) for path in record_paths(root)}
    for path, found in records.items():
        check_place(path, found)
        reason = why_not(found)
        if reason:
            raise record.RecordError(f"{path}: {reason}")
    targets = {path: target_of(path, found, published) for path, found in records.items()}
    for path, target in targets.items():
        if target.exists() and record.read(target) != record.read(path):
            raise record.RecordError(
                f"{path}: another record of its case and round is published as {target}: "
                "measure a whole round anew (make round)"
            )
    for path, target in targets.items():
        record.write(target, record.read(path))
    return list(targets.values())


def target_of(path: Path, found: Record, published: Path) -> Path:
    """Where a record is published: in a folder named after the time when its round began."""
    folder = path.resolve().parent
    name = folder.name
    if name.startswith("round-"):
        begun = [record.read(one) for one in rounds.record_files(folder)]
        name = began(datetime.fromisoformat(one["started_at"]) for one in begun if one)
    return rounds.path_of(published, found.machine.id, name, found.to_case())


def began(times: Iterable[datetime]) -> str:
    """The name of a published round by when its records were begun."""
    return rounds.name_at(min(map(rounds.in_utc, times)))


def why_not(found: Record) -> str | None:
    """Why a valid record may not be published, or None where it may."""
    if found.tier == "smoke":
        return "tier: is smoke, which is not for publishing"
    if found.software.git_commit is None or found.software.git_dirty:
        return (
            "software.git_dirty: measured with uncommitted changes in models/ or "
            "experiments/; commit and measure again"
        )
    return own_failure(found)


def own_failure(found: Record) -> str | None:
    """What is wrong with code of ours, by a record that failed; None of any other record."""
    # That somebody else's system is wrong is a result; that ours is, is a fault to mend.
    if found.status == "failed" and not VARIANTS[found.variant].is_peer:
        return f"status: is failed ({found.reason})"
    return None


def check_place(path: Path, found: Record) -> None:
    """RecordError unless a record lies where its case belongs and holds what is measured of it."""
    case = found.to_case()
    for what, is_there, expected in (
        ("case", path.stem, case.name),
        ("machine.id", path.resolve().parent.parent.name, found.machine.id),
    ):
        if is_there != expected:
            raise record.RecordError(f"{path}: {what}: belongs at {expected}, not {is_there}")
    if not rounds.NAME.fullmatch(path.resolve().parent.name):
        raise record.RecordError(f"{path}: expected a round's folder, not {path.parent.name}")
    check_result(path, found)


def check_result(name: Path | str, found: Record) -> None:
    """RecordError unless the case is a point of a grid, and holds what that one measures."""
    case = found.to_case()
    experiments = grids.experiments_of(case)
    if not experiments:
        raise record.RecordError(f"{name}: case: is a point of no grid")
    check_measured(name, found, grids.load(experiments[0]).procedure(case.variant))


def check_measured(name: Path | str, found: Record, by: str) -> None:
    """RecordError unless the record holds what the procedure of that name measures."""
    procedure = PROCEDURES[by]
    if found.status == "ok" and not procedure.is_in(found.replicates):
        fields = " and ".join(procedure.fields)
        raise record.RecordError(f"{name}: replicates: {procedure.name} gives {fields}")
