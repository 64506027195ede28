"""Drafts tables without a GPU: `python -m experiments.tuning.draft [TABLE ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from experiments.tuning import plan, tables
from experiments.tuning.candidates import candidates
from models.errors import check_choice
from models.kernels import tile_tables, tiles
from models.kernels.compile import KERNELS, build, forms
from models.kernels.resource_usage import why_not_raced
from models.kernels.tiles import Tile

DRAFTED = "first candidate that compiles without a fault; not measured"


def draft(names: Iterable[str], say: Callable[[str], None] = print) -> None:
    """Write tables, of `KERNELS`, anew for every card: the first candidate without a fault."""
    for table in names:
        check_choice("TABLE", table, KERNELS)
    for table in names:
        made: dict[str, list[dict]] = {kernel: [] for kernel in KERNELS[table]}
        wanted = [
            (entry, capability)
            for kernel in KERNELS[table]
            for capability in tiles.CAPABILITIES
            for entry in plan.entries([table])
            # Two tiles a program are written for Hopper's tensor cores.
            if entry.kernel == kernel and (kernel != "forward_pair" or capability == 90)
        ]
        with ProcessPoolExecutor() as pool:
            found = pool.map(_first_clean, *zip(*wanted, strict=True))
            for (entry, capability), tile in zip(wanted, found, strict=True):
                where = f"sm_{capability} {entry}"
                if tile is None:
                    say(f"{where}: no candidate compiles without a fault")
                    continue
                line = entry.key(capability) | asdict(tile) | {"source": DRAFTED}
                made[entry.kernel].append(line)
                say(f"{where}: {tile}")
        tables.write(tile_tables.HOME, table, made)


def _first_clean(entry: plan.Entry, capability: int) -> Tile | None:
    key = entry.key(capability)
    for tile in candidates(entry):
        made = (build(form) for form in forms(entry.table, entry.kernel, key, tile))
        if why_not_raced(made, capability) is None:
            return tile
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(KERNELS))
    draft(parser.parse_args().tables or KERNELS)
