"""Writing records: plain dictionaries, atomically, with the standard library only."""

from __future__ import annotations

import json
import os
from pathlib import Path

from experiments.files import replacing

SCHEMA_VERSION = 1


class RecordError(ValueError):
    """A record that cannot be read or written: names the file and the field."""


def write(path: Path, record: dict) -> None:
    """Write `record` as JSON so that `path` is either the old file or the whole new one."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    try:
        with replacing(path) as partial, open(partial, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError(f"{path.parent}: cannot write there: {error.strerror}") from error


def read(path: Path) -> dict | None:
    """The record at `path` unvalidated, or None if there is none that can be parsed."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return data if isinstance(data, dict) else None
