"""Rounds: passes over the cases, apart in time. Where their records lie, and in which order.

`<folder>/<machine>/round-1/<case>.json` on the machine that measured them; a published round is
named after the time when it began. A round is never overwritten: what other code has measured
moves to `<machine>/outdated/`, where nothing reads it, and back when its code is back.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from experiments import record
from experiments.case import Case
from experiments.digest import code_digest
from experiments.grid import Task, cases
from experiments.machine import Machine
from models.registry import VARIANTS

OUTDATED = "outdated"
# A round's folder on its machine, and published.
LOCAL_NAME = re.compile(r"round-[1-9]\d{0,3}", re.ASCII)
PUBLISHED_FORM = "%Y-%m-%dT%H%M%SZ"
PUBLISHED_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z", re.ASCII)
# As `experiments.machine` makes them.
MACHINE = re.compile(r"[a-z0-9-]{1,200}", re.ASCII)
# Seconds for which a round that was interrupted can go on.
RESUME_S = 6 * 3600.0
# Statuses that stand until the code changes, unless their cause was the day. A failed case of ours
# is tried again: it is to be mended; that somebody else's system fails is a result.
_FINAL = ("ok", "oom", "timeout", "unsupported")
# The systems of one shape share these, and are measured one after another.
_SHAPE = ("batch", "seq_len", "heads", "head_dim", "dtype", "is_causal", "pass_", "recipe")
# Of a variant and a procedure, as `code_digest`.
Digest = Callable[[str, str | None], str]


def name_of(number: int) -> str:
    """The folder of a machine's round by its number, from 1."""
    return f"round-{number}"


def name_at(began: datetime) -> str:
    """The folder of a published round."""
    return f"{in_utc(began):{PUBLISHED_FORM}}"


def in_utc(time: datetime) -> datetime:
    """The same time in UTC, in which one without a zone is."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def path_of(out: Path, machine_id: str, round_: str, case: Case) -> Path:
    """Where the record of `case` in a round lies."""
    return out / machine_id / round_ / f"{case.name}.json"


def record_files(root: Path) -> list[Path]:
    """The records at or under `root`, sorted: those set aside, and half-written ones, are none.

    Whatever is called a record is one here, and so is a link to a folder, which is not followed,
    and a folder that cannot be read: whoever reads it is told.
    """
    if root.is_file():
        return [root]
    found: list[Path] = []

    def unread(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            found.append(Path(error.filename))

    for top, folders, files in os.walk(root, onerror=unread):
        found += [Path(top, name) for name in [*files, *folders] if _is_record(name)]
        links = (Path(top, name) for name in folders if not _is_record(name))
        found += [path for path in links if path.is_symlink()]
        folders[:] = [name for name in folders if name != OUTDATED]
    return sorted(found)


def _is_record(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def well_placed(root: Path) -> list[Path]:
    """The files that are called as a record of a grid's case is in `root`, and can be read.

    Sorted; they may be named in a workflow, whatever else lies there.
    """
    names = {f"{case.name}.json" for case in cases()}
    return [
        path
        for path in record_files(root)
        if path.name in names
        and len(path.relative_to(root).parts) == 3
        and MACHINE.fullmatch(path.parts[-3])
        and PUBLISHED_NAME.fullmatch(path.parts[-2])
        and stat.S_ISREG(path.lstat().st_mode)
        and os.access(path, os.R_OK)
    ]


def shape_of(case: Case) -> tuple:
    """What a case shares with those that it is compared with."""
    return tuple(getattr(case, key, None) for key in _SHAPE)


def in_random_order(tasks: Iterable[Task], seed: int | str) -> list[Task]:
    """Shapes in random order, the systems of a shape in random order one after another.

    A ratio of two systems then spans no drift of the machine, and a drift lines up with no system
    and no length.
    """
    draw = random.Random(seed)
    shapes: dict[tuple, list[Task]] = {}
    for task in tasks:
        shapes.setdefault(shape_of(task.case), []).append(task)
    blocks = list(shapes.values())
    draw.shuffle(blocks)
    for block in blocks:
        draw.shuffle(block)
    return [task for block in blocks for task in block]


def current(
    path: Path, case: Case, procedure: str | None = None, digest: Digest = code_digest
) -> dict | None:
    """The record at `path` if it is readable, of today's schema and made by today's code.

    procedure: how the case is measured, as `code_digest` takes it. digest: that, or for one look at
    many records one that remembers, so that the code is read once and not for each of them.
    """
    found = record.read(path) or {}
    software = found.get("software")
    made_by = software.get("code_digest") if isinstance(software, dict) else None
    of_today = found.get("schema_version") == record.SCHEMA_VERSION
    return found if of_today and made_by == digest(case.variant, procedure) else None


def is_done(
    path: Path, case: Case, procedure: str | None = None, digest: Digest = code_digest
) -> bool:
    """Whether the record there stands: current, no failure of ours, nor one of the day."""
    found = current(path, case, procedure, digest) or {}
    status, is_peer = found.get("status"), VARIANTS[case.variant].is_peer
    if found.get("cause") == "day":
        return False
    return status in _FINAL or (status == "failed" and is_peer)


def set_aside_outdated(path: Path, case: Case, procedure: str | None = None) -> None:
    """Move a record that is not current to the machine's `outdated`, and back when its code is.

    For a record of other code, or one cut short, nothing may be there: Snakemake knows only of
    records that it made itself. Nothing is lost.
    """
    _set_aside(path, case, procedure, code_digest, _standing_aside)


def set_all_aside(folder: Path, tasks: Iterable[Task], digest: Digest) -> None:
    """`set_aside_outdated` of the records of tasks in a round's folder, as they are now."""
    standing = cache(_standing_aside)
    for task in tasks:
        path = folder / f"{task.name}.json"
        _set_aside(path, task.case, task.procedure, digest, standing)


def _set_aside(
    path: Path,
    case: Case,
    procedure: str | None,
    digest: Digest,
    standing: Callable[[Path], Mapping[str, list[Path]]],
) -> None:
    aside = path.parents[1] / OUTDATED / path.parent.name
    if path.exists() and current(path, case, procedure, digest) is None:
        aside.mkdir(parents=True, exist_ok=True)
        name = f"{path.stem}@{_time_of(path)}"
        names = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        places = (aside / f"{one}.json" for one in names)
        # Another run may have done so meanwhile.
        with suppress(FileNotFoundError):
            path.replace(next(place for place in places if not place.exists()))
    if not path.exists() and aside.is_dir():
        for one in standing(aside).get(path.stem, ()):
            if current(one, case, procedure, digest):
                with suppress(FileNotFoundError):
                    one.replace(path)
                return


def _standing_aside(aside: Path) -> dict[str, list[Path]]:
    """The records set aside there, by the name of their case, each case's sorted."""
    found: dict[str, list[Path]] = {}
    for path in sorted(aside.glob("*@*.json")):
        found.setdefault(path.name.rpartition("@")[0], []).append(path)
    return found


def _time_of(path: Path) -> str:
    """When the record there was begun, for a file name; of none that can be read, the file's."""
    text = (record.read(path) or {}).get("started_at")
    try:
        return name_at(datetime.fromisoformat(text))
    except (TypeError, ValueError, OverflowError):
        return name_at(datetime.fromtimestamp(path.lstat().st_mtime, UTC))


def first_open(out: Path, machine: Machine, tasks: Iterable[Task]) -> int:
    """The number of the first round in which a case is still to be measured, and may be.

    One pass over the cases lies close together in time: what another host measured, or this one
    before it last started or more than RESUME_S ago, is of a round that is over.
    """
    tasks, number, digest = list(tasks), 1, cache(code_digest)
    while tasks:
        folder = out / machine.id / name_of(number)
        done = (
            is_done(folder / f"{task.name}.json", task.case, task.procedure, digest)
            for task in tasks
        )
        if not all(done) and _may_go_on(folder, machine):
            break
        number += 1
    return number


def _may_go_on(folder: Path, machine: Machine) -> bool:
    """Whether a round is not begun, or was left by this host a short while ago."""
    files = record_files(folder)
    hosts = {_host_of(found) for found in map(record.read, files) if found}
    left = max((path.lstat().st_mtime for path in files), default=math.inf)
    return hosts <= {machine.host.id} and time.time() - left < RESUME_S


def _host_of(found: dict) -> str | None:
    host = (found.get("machine") or {}).get("host") or {}
    return host.get("id")
