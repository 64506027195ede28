"""Making, writing and reading records: plain dictionaries, with the standard library only.

What is read may be anybody's: see `parse`. Whether it is a record says `experiments.gate`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from functools import cache
from pathlib import Path

from experiments.atomic_write import atomic_write, in_words
from experiments.shown import shown

SCHEMA_VERSION = 2
# Of a file: the largest published record has 32 kB.
MAX_BYTES = 2**20


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


def parse(path: Path, name: Path | str | None = None) -> object:
    """What the JSON file at `path` holds; RecordError, under `name`, where it is none.

    A regular file of at most MAX_BYTES, in UTF-8, without a key twice in an object. No link is
    followed, and nothing is waited for.
    """
    name = shown(name or path)
    try:
        text = _bytes(path).decode()
        return json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise RecordError(f"{name}: file: {_unread(error)}") from None
    except RecursionError:
        raise RecordError(f"{name}: not JSON that can be read: nested too deeply") from None
    except _Refused as error:
        raise RecordError(f"{name}: {error}") from None
    # Of bytes that are no text, of text that is no JSON, and of a number of 4,300 digits.
    except ValueError as error:
        raise RecordError(f"{name}: not JSON (truncated?): {shown(error)}") from None


class _Refused(ValueError):
    """What is JSON to `json`, or a file that is none to read: the field and what is wrong."""


def _bytes(path: Path) -> bytes:
    # Without O_NONBLOCK a FIFO is waited for.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise _Refused("file: is no regular file")
        # One byte more than fits. A read of a file on a disk is cut short by nothing but its end.
        data = os.read(opened, MAX_BYTES + 1)
    finally:
        os.close(opened)
    if len(data) > MAX_BYTES:
        raise _Refused(f"file: has more than {MAX_BYTES:,} bytes")
    return data


def _unread(error: OSError) -> str:
    is_link = error.errno == errno.ELOOP
    return "is a symbolic link, which is not followed" if is_link else in_words(error)


def _once(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON; the last of two equal keys would hide the first."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused(f"{shown(twice)}: stands there twice")
    return made


def read(path: Path) -> dict | None:
    """The record at `path`, or None where none can be read there.

    It is not validated: but what the runner reads of it has the types of a record.
    """
    try:
        data = parse(path)
    except RecordError:
        return None
    return data if isinstance(data, dict) and _is_like_a_record(data) else None


def _is_like_a_record(data: dict) -> bool:
    objects = [data, *(data.get(key) for key in ("software", "machine", "gauges"))]
    if not all(one is None or isinstance(one, dict) for one in objects):
        return False
    host, cards = ((data.get("machine") or {}).get(key) for key in ("host", "cards"))
    gauges = data.get("gauges")
    return (
        (host is None or isinstance(host, dict))
        and (gauges is None or _are_gauges(gauges))
        and (cards is None or (isinstance(cards, list) and all(map(_is_card, cards))))
    )


def _is_card(found: object) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("uuid"), str):
        return False
    return "instance" in found and isinstance(found["instance"], str | None)


def _are_gauges(found: dict) -> bool:
    pair = [found.get("before"), found.get("after")]
    return len(found) == 2 and all(
        isinstance(one, dict)
        and set(one) == {"dense_ms", "matmul_ms", "copy_ms"}
        and all(type(ms) in (int, float) and 0 < ms < float("inf") for ms in one.values())
        for one in pair
    )
