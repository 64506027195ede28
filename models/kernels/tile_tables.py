"""Where the table of tiles of each kernel lies; with the standard library only.

`<table>.json` beside the kernel of that name, or, where the environment variable
ATTENTION_TILES names a folder, the file of that name in it: tables tuned on one card are used, and
their digest recorded, without a change to the repository. A table that is not in the folder is
read from beside the kernel.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

HOME = Path(__file__).parent
VARIABLE = "ATTENTION_TILES"


def tables() -> list[str]:
    """The names of all tables, sorted."""
    return sorted(x.stem for x in HOME.glob("*.json") if x.with_suffix(".py").is_file())


def path(table: str) -> Path:
    """The file that `table` is read from; ValueError where ATTENTION_TILES names no folder."""
    return (_folder() if table in overlaid() else HOME) / f"{table}.json"


def overlaid() -> list[str]:
    """The tables read from the folder ATTENTION_TILES, sorted; ValueError where it is none."""
    folder = _folder()
    if folder is None:
        return []
    return [table for table in tables() if (folder / f"{table}.json").is_file()]


def digest() -> str | None:
    """16 hex digits over names and bytes of the overlaid tables; None where there are none."""
    names = overlaid()
    sha = hashlib.sha256()
    for name in names:
        data = path(name).read_bytes()
        sha.update(f"{name}\0{len(data)}\0".encode() + data)
    return sha.hexdigest()[:16] if names else None


def _folder() -> Path | None:
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{VARIABLE}={named}: no such folder; expected one of tile tables")
    return Path(named)
