"""Tile tables that come from elsewhere: checked strictly, and written as they lie in the kernels.

Needs no Triton, unlike `models.kernels.tiles`, which reads them to launch kernels.
"""

from __future__ import annotations

import json
from pathlib import Path

from experiments.atomic_write import atomic_write
from experiments.digest import ROOT

FOLDER = ROOT / "models" / "kernels"
_POWERS = [2**n for n in range(4, 11)]
# What each number of an entry may be.
_ALLOWED = {
    "capability": range(80, 200),
    "head_dim": _POWERS,
    "bits": (8, 16, 32),
    "block_size": _POWERS,
    "block_m": _POWERS,
    "block_n": _POWERS,
    "warps": (1, 2, 4, 8, 16, 32),
    "stages": range(1, 9),
    "maxnreg": (None, *range(24, 256)),
    "rotated": (False, True),
}
# JSON's true is no number, nor 1 a truth value.
_TYPES = {"maxnreg": (int, type(None)), "rotated": (bool,)}
# By these an entry is looked up; a table has each combination once.
_KEYS = ("capability", "head_dim", "bits", "block_size")
_SOURCE_LENGTH = 400


class TileTableError(ValueError):
    """A tile table that must not be taken; the message says where in it and why."""


def check(name: str, table: object, folder: Path = FOLDER) -> None:
    """TileTableError unless `table`, read from JSON, can take the place of `folder`/`name`.json.

    It has the kernels of that table, at least its entries, and no other keys or values than
    tiles have.
    """
    known = sorted(path.stem for path in folder.glob("*.json"))
    if name not in known:
        raise TileTableError(f"there is no such table: expected one of {', '.join(known)}")
    present = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    if not isinstance(table, dict) or set(table) != set(present):
        raise TileTableError(f"expected a mapping with the kernels {', '.join(present)}")
    for kernel, entries in table.items():
        if not isinstance(entries, list):
            raise TileTableError(f"{kernel}: expected a list of entries")
        keys, found = set(present[kernel][0]), set()
        for number, entry in enumerate(entries, start=1):
            where = f"{kernel}, entry {number}"
            _check_entry(where, entry, keys)
            if entry.get("rotated") and (kernel, entry["bits"]) != ("forward", 16):
                raise TileTableError(f"{where}: rotated: true is not what a tile of it can have")
            if _key(entry) in found:
                raise TileTableError(f"{where}: stands there twice, for {_told(_key(entry))}")
            found.add(_key(entry))
        for entry in present[kernel]:
            if _key(entry) not in found:
                raise TileTableError(
                    f"{kernel}: lacks the entry for {_told(_key(entry))}, which the table here has"
                )


def text_of(table: dict[str, list[dict]]) -> str:
    """A table as JSON, one line per entry, so that a change of one is a change of one line."""
    kernels = []
    for kernel, entries in table.items():
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
        kernels.append(f" {json.dumps(kernel)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(kernels) + "\n}\n"


def write(name: str, table: dict[str, list[dict]], folder: Path = FOLDER) -> None:
    """Replace `folder`/`name`.json, whole."""
    with atomic_write(folder / f"{name}.json") as partial:
        partial.write_text(text_of(table), encoding="utf-8")


def _check_entry(where: str, entry, keys: set[str]) -> None:
    if not isinstance(entry, dict) or set(entry) != keys:
        raise TileTableError(f"{where}: expected a mapping with the keys {', '.join(sorted(keys))}")
    for key, value in entry.items():
        if key == "source":
            if not (
                isinstance(value, str) and 0 < len(value) <= _SOURCE_LENGTH and value.isprintable()
            ):
                raise TileTableError(
                    f"{where}: source: expected one line of 1 to {_SOURCE_LENGTH} characters"
                )
        elif type(value) not in _TYPES.get(key, (int,)) or value not in _ALLOWED[key]:
            raise TileTableError(f"{where}: {key}: {value!r} is not what a tile can have")


def _key(entry: dict) -> tuple:
    return tuple(entry.get(key) for key in _KEYS)


def _told(key: tuple) -> str:
    pairs = zip(_KEYS, key, strict=True)
    return ", ".join(f"{name} {value}" for name, value in pairs if value is not None)
