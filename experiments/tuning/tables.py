"""Tables of tiles as files of a folder, and the journal of what was tuned into it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from experiments.atomic_write import atomic_write
from experiments.tuning.plan import Entry
from models.kernels import tile_tables, tiles
from models.kernels.tiles import Tile

JOURNAL = ".tuned.json"


def read(folder: Path, table: str) -> dict[str, list[dict]]:
    """The table in `folder`, or where there is none yet that in use: kernel -> entries."""
    path = folder / f"{table}.json"
    return tiles.read_file(path if path.is_file() else tile_tables.path(table))


def current(folder: Path, entry: Entry, capability: int) -> Tile | None:
    """The tile that the table in `folder` has for an entry, if any."""
    for one in read(folder, entry.table)[entry.kernel]:
        if _is(one, entry, capability):
            return tiles.tile_of(one)
    return None


def replace(folder: Path, entry: Entry, capability: int, tile: Tile, source: str) -> None:
    """Write the table into `folder`, whole, with that entry's tile and source replaced."""
    made = read(folder, entry.table)
    new = entry.key(capability) | asdict(tile) | {"source": source}
    made[entry.kernel] = [new if _is(old, entry, capability) else old for old in made[entry.kernel]]
    write(folder, entry.table, made)


def write(folder: Path, table: str, made: dict[str, list[dict]]) -> None:
    """One line per entry, so that a change of one is a change of one line."""
    kernels = []
    for kernel, entries in made.items():
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
        kernels.append(f" {json.dumps(kernel)}: [\n{lines}\n ]")
    with atomic_write(folder / f"{table}.json") as partial:
        partial.write_text("{\n" + ",\n".join(kernels) + "\n}\n", encoding="utf-8")


def journal(folder: Path) -> list[dict]:
    """What was tuned into `folder`, in order; nothing where there is no (whole) journal."""
    try:
        found = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return found if isinstance(found, list) else []


def note(folder: Path, line: dict) -> None:
    """Add a line to the journal."""
    lines = ",\n".join(f" {json.dumps(one)}" for one in [*journal(folder), line])
    with atomic_write(folder / JOURNAL) as partial:
        partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _is(one: dict, entry: Entry, capability: int) -> bool:
    key = entry.key(capability)
    return all(one.get(name) == key.get(name) for name in tiles.KEYS)
