"""A campaign's archive, brought home: every record is checked by itself, and filed.

What is refused is named with its reason; the rest is published.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from experiments import record, rounds, tile_tables, trusted
from experiments.archive import MANIFEST, SUMMARY, unpack
from experiments.atomic_write import atomic_write
from experiments.digest import ROOT
from experiments.gate import check_result
from experiments.procedures import of_case
from experiments.publish import began, check_target, own_failure, why_not
from experiments.record import parse
from experiments.schema import Record, check
from experiments.shown import shown
from experiments.source_tree import FOLDERS, commit_of

RESULTS = ROOT / "results"
_FORMAT = 1
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Manifest:
    """What `campaign.json` says of a campaign."""

    is_rehearsal: bool
    started_at: datetime
    machine: str
    trees: dict[str, str]


@dataclass
class Found:
    """What an archive holds that is sound; `refused`: a line each of what is not."""

    manifest: Manifest | None = None
    summary: str | None = None
    records: dict[str, tuple[dict, Record]] = field(default_factory=dict)
    tiles: dict[str, dict] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def validate_archive(path: Path) -> tuple[int, list[str]]:
    """How many records of the archive are valid, and what is wrong with all else in it."""
    found = _read(path, tile_tables.FOLDER)
    return len(found.records), found.refused


def publish_archive(
    path: Path, *, take_tiles: bool = False, results: Path = RESULTS, kernels: Path | None = None
) -> int:
    """File what may be published of the archive at `path`; returns the exit status.

    That is 0 where a record was published or was already, the same, and 1 where none was.
    Records go to `results`/published, those of a rehearsal to `results`/rehearsed, where
    smoke tests, failures and uncommitted code are let in. take_tiles: its tile tables replace
    those in `kernels` (models/kernels); ValueError of a rehearsal's. OSError or RecordError where
    the archive cannot be read or nothing can be written.
    """
    kernels = kernels or tile_tables.FOLDER
    found = _read(path, kernels)
    manifest, refused = found.manifest, found.refused
    if manifest is None:
        refused += [f"{name}: {MANIFEST} does not say what made it" for name in found.records]
        return _told(0, 0, refused, [])
    if manifest.is_rehearsal and take_tiles:
        raise ValueError(f"--tiles: {path} is of a rehearsal, whose tiles are not measured")
    base = results / ("rehearsed" if manifest.is_rehearsal else "published")
    commit = cache(lambda: commit_of(manifest.trees))
    failures, published, same, folders = [], 0, 0, {}
    who = None if manifest.is_rehearsal else trusted.myself()
    names = _names_of_rounds(found.records)
    for name, (data, one) in found.records.items():
        if one.software.git_commit is None and not one.software.git_dirty and commit():
            software = {**data["software"], "git_commit": commit(), "git_dirty": False}
            data = {**data, "software": software}
            one = check(data, name)
        failure = None if manifest.is_rehearsal else own_failure(one)
        if failure:
            failures.append(f"{name}: {failure}")
            continue
        reason = None if manifest.is_rehearsal else _why_not(one, manifest)
        folder = name.rpartition("/")[0]
        target = rounds.path_of(base, one.machine.id, names[folder], one.to_case())
        check_target(target, base)
        if who and target.parent not in folders:
            folders[target.parent] = trusted.why_not_beside(base, *target.parent.parts[-2:])
        is_there, other = _beside(target, data)
        reason = reason or other or folders.get(target.parent)
        if reason:
            refused.append(f"{name}: {reason}")
            continue
        if not is_there:
            record.write(target, data)
        published += 1
        same += is_there
    if who and published:
        filled = [folder for folder, why in folders.items() if not why and folder.exists()]
        trusted.add(base, (folder.parts[-2:] for folder in filled), who)
    status = _told(published, same, refused, failures)
    if manifest.is_rehearsal:
        print(f"it is a rehearsal: filed under {_near(base)}, which nothing reads")
    if published:
        _explain(found, base)
        _tell_tiles(found, kernels, take_tiles)
    return status


def _read(path: Path, kernels: Path) -> Found:
    """Unpack the archive to a temporary folder and check all that is in it."""
    found = Found()
    with tempfile.TemporaryDirectory(prefix="campaign-") as temporary:
        folder = Path(temporary)
        found.refused += [f"{one.name}: {one.reason}" for one in unpack(path, folder)]
        try:
            found.manifest = _manifest(folder / MANIFEST)
        except record.RecordError as error:
            found.refused.append(str(error))
        for file in sorted(folder.glob("records/*/*/*.json")):
            name = file.relative_to(folder).as_posix()
            try:
                data = parse(file, name)
                one = check(data, name)
                _check_place(name, one, found.manifest)
                found.records[name] = data, one
            except record.RecordError as error:
                found.refused.append(str(error))
        for file in sorted(folder.glob("tiles/*.json")):
            name = file.relative_to(folder).as_posix()
            try:
                table = parse(file, name)
                tile_tables.check(file.stem, table, kernels)
                found.tiles[file.stem] = table
            except record.RecordError as error:
                found.refused.append(str(error))
            except tile_tables.TileTableError as error:
                found.refused.append(f"{name}: {error}")
        if (folder / SUMMARY).is_file():
            try:
                found.summary = _plain((folder / SUMMARY).read_bytes())
            except ValueError:
                found.refused.append(f"{SUMMARY}: expected UTF-8 text without control characters")
    return found


def _manifest(path: Path) -> Manifest:
    """RecordError where it is not there or does not say what it must."""
    if not path.is_file():
        raise record.RecordError(f"{MANIFEST}: is not in the archive, which is no campaign's")
    data = parse(path, MANIFEST)

    def need(key: str, is_right: bool, expected: str) -> None:
        if not is_right:
            raise record.RecordError(f"{MANIFEST}: {key}: expected {expected}")

    need("the whole", isinstance(data, dict), "a mapping")
    is_first = type(data.get("format")) is int and data["format"] == _FORMAT
    need("format", is_first, f"{_FORMAT}, which this code reads")
    need("rehearsal", type(data.get("rehearsal")) is bool, "true or false")
    machine, trees = data.get("machine"), data.get("trees")
    need(
        "machine", isinstance(machine, str) and rounds.MACHINE.fullmatch(machine), "a machine's id"
    )
    is_trees = isinstance(trees, dict) and set(trees) == set(FOLDERS)
    is_trees = is_trees and all(isinstance(x, str) and _SHA.fullmatch(x) for x in trees.values())
    need("trees", is_trees, f"git's tree SHA-1 of {' and '.join(FOLDERS)}")
    try:
        given = datetime.fromisoformat(data.get("started_at"))
    except (TypeError, ValueError):
        raise record.RecordError(f"{MANIFEST}: started_at: expected a time in UTC") from None
    started_at = _check_time("started_at", given, MANIFEST)
    return Manifest(data["rehearsal"], started_at, machine, trees)


def _check_time(key: str, given: datetime, name: str) -> datetime:
    """The time in UTC; RecordError names the file and the field of one that cannot be."""
    with suppress(OverflowError):
        if (found := rounds.in_utc(given)).year >= 2000:
            return found
    raise record.RecordError(f"{name}: {key}: expected a time in UTC, of this century")


def _check_place(name: str, found: Record, manifest: Manifest | None) -> None:
    """RecordError unless the record is of a case here and lies where it belongs."""
    _, machine, round_, file = name.split("/")
    if found.machine.id != machine:
        raise record.RecordError(
            f"{name}: machine.id: is {found.machine.id!r}, and it lies under {machine!r}"
        )
    if not rounds.MACHINE.fullmatch(machine):
        raise record.RecordError(f"{name}: machine.id: is {machine!r}, which is no machine's id")
    if not rounds.LOCAL_NAME.fullmatch(round_):
        raise record.RecordError(f"{name}: expected a round's folder, not {round_!r}")
    belongs = f"{found.to_case().name}.json"
    if file != belongs:
        raise record.RecordError(f"{name}: case: belongs at {machine}/{round_}/{belongs}")
    if not (manifest and manifest.is_rehearsal):
        check_result(name, found)
        return
    # Its cases are smaller than those of any grid.
    _check_time("started_at", found.started_at, name)
    procedure = of_case(found.to_case())
    if found.status == "ok" and not procedure.is_in(found.replicates):
        fields = " and ".join(procedure.fields)
        raise record.RecordError(f"{name}: replicates: {procedure.name} gives {fields}")


def _names_of_rounds(records: dict[str, tuple[dict, Record]]) -> dict[str, str]:
    """Of each folder of records in the archive, the name under which its round is published."""
    begun: dict[str, list[datetime]] = {}
    for name, (_, one) in records.items():
        begun.setdefault(name.rpartition("/")[0], []).append(one.started_at)
    return {folder: began(times) for folder, times in begun.items()}


def _why_not(one: Record, manifest: Manifest) -> str | None:
    """Why a valid record of an archive may not be published, or None where it may."""
    commit = one.software.git_commit
    if one.tier != "smoke" and commit is None and not one.software.git_dirty:
        trees = ", ".join(f"{name} {sha[:12]}" for name, sha in manifest.trees.items())
        return (
            f"software.git_commit: is null, and no commit here has the sources that {MANIFEST} "
            f"names ({trees}); fetch that commit, or commit those sources, and publish again"
        )
    if commit is not None and not _SHA.fullmatch(commit):
        return "software.git_commit: expected a commit's SHA-1"
    return why_not(one)


def _beside(target: Path, data: dict) -> tuple[bool, str | None]:
    """Whether the same record lies at `target`, and where another one does, that it stays."""
    if not os.path.lexists(target):
        return False, None
    try:
        old = parse(target)
        check(old, target)
    except record.RecordError as error:
        return False, f"what is published is no record: {error}"
    if _without_commit(old) == _without_commit(data):
        return True, None
    return False, (
        f"another record of its case and round is published as {_near(target)}, "
        "and a round is never overwritten"
    )


def _without_commit(data: dict) -> dict:
    """The same sources are in many commits, and the newest of them changes."""
    software = {**data["software"], "git_commit": None, "git_dirty": None}
    return {**data, "software": software}


def _explain(found: Found, base: Path) -> None:
    """Keep the summary and the tile tables beside the records, and say where."""
    manifest = found.manifest
    folder = base / manifest.machine / "campaigns" / f"{manifest.started_at:%Y%m%dT%H%M%SZ}"
    check_target(folder, base)
    # Not as JSON: whatever ends so under `published` is taken for a record.
    tiles = [f"{name}.json\n{tile_tables.text_of(table)}" for name, table in found.tiles.items()]
    for name, text in ((SUMMARY, found.summary), ("tiles.txt", "\n".join(tiles))):
        if text:
            with atomic_write(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")
            print(f"kept {_near(folder / name)}")


def _tell_tiles(found: Found, kernels: Path, take_tiles: bool) -> None:
    """Replace the tile tables of the kernels, or say how."""
    new = [
        name
        for name, table in found.tiles.items()
        if tile_tables.text_of(table) != (kernels / f"{name}.json").read_text(encoding="utf-8")
    ]
    if not new:
        print("no tile table in it differs from those of models/kernels")
    elif take_tiles:
        for name in new:
            tile_tables.write(name, found.tiles[name], kernels)
        print(f"replaced the tile tables {', '.join(new)} of models/kernels")
    elif not found.manifest.is_rehearsal:
        print(f"its tile tables {', '.join(new)} are new: --tiles puts them in models/kernels")


def _told(published: int, same: int, refused: list[str], failures: list[str]) -> int:
    """Say what became of the records; returns the exit status."""
    for line in refused:
        print(f"refused: {shown(line)}", file=sys.stderr)
    for line in failures:
        print(f"refused, our own fault to mend: {shown(line)}", file=sys.stderr)
    print(f"published {published} records, refused {len(refused) + len(failures)}")
    if same:
        print(f"{same} of the published were there already, the same")
    if failures:
        print(f"{len(failures)} of the refused are failures of our own code, findings to mend")
    if not published:
        print("error: no record was published", file=sys.stderr)
    return 0 if published else 1


def _plain(data: bytes) -> str:
    """`data` as text; ValueError where it is none."""
    text = data.decode()
    if not all(c.isprintable() or c in "\n\t" for c in text):
        raise ValueError("control characters")
    return text


def _near(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
