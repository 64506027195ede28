"""From `results/local` to `results/published`: validated, complete, by committed code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from experiments import record, rounds, trusted
from experiments.archive import MANIFEST
from experiments.cards import STAND_IN
from experiments.digest import ROOT
from experiments.gate import sift
from experiments.schema import Record
from experiments.shown import shown
from models.registry import VARIANTS

PUBLISHED = ROOT / "results" / "published"


def check_root(root: Path) -> None:
    """RecordError unless there may be records at or under `root`."""
    if not root.exists():
        raise record.RecordError(f"{shown(root)}: no such file or folder")
    if (root / MANIFEST).is_file():
        raise record.RecordError(f"{shown(root)}: is a campaign's folder: name the .tar.xz in it")
    if not rounds.record_files(root):
        raise record.RecordError(f"{shown(root)}: no records (*.json) there")


def validate(root: Path) -> tuple[int, list[str]]:
    """How many records at or under `root` are valid, and what is wrong with the others."""
    check_root(root)
    found = sift([root])
    return len(found.records), found.left_out


def publish(root: Path, published: Path = PUBLISHED) -> list[Path]:
    """Copy every record under `root` to `published`: all, or, with RecordError, none.

    Whoever publishes vouches for them, by name in `published`/TRUSTED (`experiments.trusted`).

    A record may be published when it is valid, is no smoke test, was made by committed code,
    has not failed, unless it is of a peer, and takes no other record's place: a round is
    measured whole, and another one lies beside it.
    """
    check_root(root)
    who = trusted.myself()
    found = sift([root])
    for line in found.left_out:
        raise record.RecordError(line)
    for path, one in found.records.items():
        is_aside = Path(os.path.abspath(path)).parts[-3] == rounds.OUTDATED
        reason = "place: was set aside, as other code measured it" if is_aside else why_not(one)
        if reason:
            raise record.RecordError(f"{shown(path)}: {reason}")
    begun: dict[Path, list[datetime]] = {}
    # Of a file, those that lie beside it are of its round.
    beside = sift([root.parent]) if root.is_file() else found
    for path, one in beside.records.items():
        begun.setdefault(path.parent, []).append(one.started_at)
    targets: dict[Path, dict] = {}
    for path, one in found.records.items():
        name = path.absolute().parent.name
        if rounds.LOCAL_NAME.fullmatch(name):
            name = began(begun[path.parent])
        target = rounds.path_of(published, one.machine.id, name, one.to_case())
        check_target(target, published)
        data = record.parse(path)
        is_other = os.path.lexists(target) and record.parse(target) != data
        if is_other or target in targets:
            raise record.RecordError(
                f"{shown(path)}: another record of its case and round is published as {target}: "
                "measure a whole round anew (make round)"
            )
        targets[target] = data
    for folder in dict.fromkeys(path.parent for path in targets):
        why = trusted.why_not_beside(published, *folder.parts[-2:])
        # All that lies there is what is published now: this was begun before, and cut short.
        if why and not all(path in targets for path in folder.iterdir()):
            raise record.RecordError(why)
    new = {path: data for path, data in targets.items() if not path.exists()}
    with _all_or_none(new):
        for path, data in new.items():
            record.write(path, data)
        trusted.add(published, dict.fromkeys(path.parent.parts[-2:] for path in targets), who)
    return list(targets)


def check_target(target: Path, published: Path) -> None:
    """RecordError where a link would lead what is written to `target` out of `published`."""
    for folder in (target.parent, target.parent.parent):
        if folder != published and folder.is_symlink():
            raise record.RecordError(f"{shown(folder)}: is a symbolic link, nothing goes there")


@contextmanager
def _all_or_none(paths: Iterable[Path]) -> Iterator[None]:
    """Where what is done within fails, leave none of these files there."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
            for folder in (path.parent, path.parent.parent):
                # Of a folder that holds something else, or is not there.
                with suppress(OSError):
                    folder.rmdir()
        raise


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
    if found.machine.device == STAND_IN:
        return f"machine.device: is a {STAND_IN}, whose times say nothing"
    if found.cause == "day":
        return f"cause: is the day ({found.reason}); measure again"
    return own_failure(found)


def own_failure(found: Record) -> str | None:
    """What is wrong with code of ours, by a record that failed; None of any other record."""
    # That somebody else's system is wrong is a result; that ours is, is a fault to mend.
    if found.status == "failed" and not VARIANTS[found.variant].is_peer:
        return f"status: is failed ({found.reason})"
    return None
