"""The folder of a campaign: what each step left there, and the archive of all of it."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from experiments import archive
from experiments.atomic_write import atomic_write, in_words

FORMAT = 1
MANIFEST = "campaign.json"
# Seconds after which the archive is made anew, so that it is never a minute old.
_PACK_AFTER_S = 40.0


class CampaignError(ValueError):
    """A campaign that cannot be begun or taken up again; the message says why."""


class Folder:
    """One campaign on disk. Every write is atomic, and one process at a time holds it."""

    def __init__(self, path: Path, manifest: dict):
        self.path, self.manifest = path, manifest
        self.records = path / "records"
        self.tiles = path / "tiles"
        self._packed_at = None
        self._lock = _lock(path)

    @classmethod
    def begin(cls, path: Path, manifest: dict) -> Folder:
        """A new campaign in `path`, which must be empty or not there."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            held = (
                "holds a campaign; add --resume" if (path / MANIFEST).exists() else "is not empty"
            )
            raise CampaignError(f"--out {path}: {held}, or name an empty folder")
        for folder in (path, path / "records", path / "tiles", path / "logs", path / "steps"):
            _make(folder)
        _write_json(path / MANIFEST, manifest)
        return cls(path, manifest)

    @classmethod
    def resume(cls, path: Path, manifest: dict) -> Folder:
        """The campaign in `path`, if it was made by the same code on the same machine."""
        try:
            found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CampaignError(f"--resume: {path} holds no {MANIFEST}") from None
        except (OSError, ValueError) as error:
            raise CampaignError(f"--resume: {path / MANIFEST}: cannot be read: {error}") from None
        for key, what in (
            ("format", "of another format"),
            ("rehearsal", "a rehearsal or not, where this is the other"),
            ("machine", "of another machine"),
            ("trees", "of other code (models/ or experiments/ were changed)"),
        ):
            if not isinstance(found, dict) or found.get(key) != manifest[key]:
                raise CampaignError(
                    f"--resume: the campaign in {path} is {what}; begin another one elsewhere"
                )
        return cls(path, found)

    def say(self, text: str) -> None:
        """A line to standard error and, with the time, to the log."""
        print(text, file=sys.stderr, flush=True)
        with open(self.path / "logs" / "campaign.log", "a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")

    def save(self, step: str, found: dict | list) -> None:
        """Leave what a step found, as JSON."""
        _write_json(self.path / "steps" / f"{step}.json", found)

    def found(self, step: str) -> dict | list | None:
        """What a step left, or None where it has not."""
        path = self.path / "steps" / f"{step}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_text(self, name: str, text: str) -> None:
        """Leave a file of text."""
        with atomic_write(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    @property
    def archive(self) -> Path:
        """The archive, beside what is in it."""
        started = self.manifest["started_at"].translate(str.maketrans("", "", "-:"))[:15]
        return self.path / f"campaign-{self.manifest['machine']}-{started}.tar.xz"

    def pack(self) -> int:
        """Make the archive anew, whole or not at all; returns its bytes."""
        size = archive.pack(self.path, self.archive)
        self._packed_at = time.monotonic()
        return size

    def packed_recently(self) -> bool:
        """Whether the archive is young enough to be left as it is."""
        return self._packed_at is not None and time.monotonic() - self._packed_at < _PACK_AFTER_S


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CampaignError(f"--out {folder}: cannot be made: {in_words(error)}") from error


def _write_json(path: Path, value) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _lock(path: Path) -> int:
    """Held until the last process that was forked from this one is gone, however this one ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    # After a kill the children follow within moments.
    give_up = time.monotonic() + 5
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(descriptor)
                raise CampaignError(
                    f"--out {path}: another process works on this campaign"
                ) from None
            time.sleep(0.1)
