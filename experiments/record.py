"""Making and writing records: plain dictionaries, atomically, with the standard library only."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from experiments.atomic_write import atomic_write, in_words

SCHEMA_VERSION = 2


class RecordError(ValueError):
    """A record that cannot be read or written: names the file and the field."""


def compose(**known) -> dict:
    """A record of these fields, in the schema's order; of the others null, or an empty list.

    TypeError for a field that the schema has not, and where one is missing that cannot be null.
    """
    known = {"schema_version": SCHEMA_VERSION, **known}
    record = {}
    for name, kind in _properties().items():
        if name in known:
            record[name] = known.pop(name)
        elif "anyOf" in kind:
            record[name] = None
        elif kind.get("type") == "array":
            record[name] = []
        else:
            raise TypeError(f"record: {name} is missing")
    if known:
        raise TypeError(f"record: has no field {', '.join(known)}")
    return record


@cache
def _properties() -> dict:
    schema = Path(__file__).with_name("record.schema.json")
    return json.loads(schema.read_text(encoding="utf-8"))["properties"]


def write(path: Path, record: dict) -> None:
    """Write `record` as JSON so that `path` is either the old file or the whole new one."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    try:
        with atomic_write(path) as partial, open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError(f"{path.parent}: cannot write there: {in_words(error)}") from error


def read(path: Path) -> dict | None:
    """The record at `path` unvalidated, or None if there is none that can be parsed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return data if isinstance(data, dict) else None
