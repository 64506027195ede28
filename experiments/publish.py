"""From `results/local` to `results/published`: validated, complete, by committed code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from experiments import grid as grids
from experiments import record
from experiments.archive import MANIFEST
from experiments.digest import ROOT
from experiments.procedures import PROCEDURES
from experiments.runner import path_of
from experiments.schema import Record, load
from models.registry import VARIANTS

PUBLISHED = ROOT / "results" / "published"


def record_paths(root: Path) -> list[Path]:
    """All records at or under `root`, sorted; RecordError if there is none."""
    if not root.exists():
        raise record.RecordError(f"{root}: no such file or folder")
    if (root / MANIFEST).is_file():
        raise record.RecordError(f"{root}: is a campaign's folder: name the .tar.xz in it")
    paths = [root] if root.is_file() else sorted(root.rglob("*.json"))
    if not paths:
        raise record.RecordError(f"{root}: no records (*.json) there")
    return paths


def validate(root: Path) -> tuple[int, list[str]]:
    """How many records at or under `root` are valid, and what is wrong with the others."""
    valid, problems = 0, []
    grid_of = cache(grids.load)
    for path in record_paths(root):
        try:
            found = load(path)
            _check_grid(path, found, grid_of(found.experiment))
            valid += 1
        except (record.RecordError, grids.GridError) as error:
            problems.append(str(error))
    return valid, problems


def publish(root: Path, published: Path = PUBLISHED) -> list[Path]:
    """Copy every record under `root` to `published`; RecordError, before any copy, if one may not.

    A record may be published when it is valid, is no smoke test, was made by committed code,
    and has not failed, unless it is of a peer.
    """
    records = {path: load(path) for path in record_paths(root)}
    grid_of = cache(grids.load)
    for path, found in records.items():
        _check_grid(path, found, grid_of(found.experiment))
        reason = why_not(found)
        if reason:
            raise record.RecordError(f"{path}: {reason}")
    targets = []
    for path, found in records.items():
        grid = grid_of(found.experiment)
        target = path_of(published, found.machine.id, grid, found.to_case())
        record.write(target, record.read(path))
        targets.append(target)
    return targets


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


def _check_grid(path: Path, found: Record, grid: grids.Grid) -> None:
    """RecordError unless a record lies where its case belongs and holds what its grid asks for."""
    expected = path_of(Path(), found.machine.id, grid, found.to_case())
    if path.resolve().parts[-3:] != expected.parts:
        raise record.RecordError(f"{path}: case: belongs at {expected}")
    check_result(path, found, grid)


def check_result(name: Path | str, found: Record, grid: grids.Grid) -> None:
    """RecordError unless the record holds what the grid's procedure measures."""
    try:
        procedure = PROCEDURES[grid.procedure(found.variant)]
    except grids.GridError as error:
        raise record.RecordError(f"{name}: variant: {error}") from error
    if found.status == "ok" and not procedure.is_in(found.replicates):
        fields = " and ".join(procedure.fields)
        raise record.RecordError(f"{name}: replicates: {procedure.name} gives {fields}")
