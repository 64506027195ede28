"""The records of all rounds, and which of them count."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from experiments import card, gate, trusted
from experiments.case import Case
from experiments.schema import Record
from experiments.shown import shown

# Behind the name of a machine, whose records are shown and compared, and judge nothing.
UNVOUCHED = " (not vouched for)"
NOBODY = "no record that somebody vouches for (results/published/TRUSTED)"
DEFAULT_ROOTS = ("results/published", "results/local")
# What `analysis.warm` has read for the forks of its process, by what `asked` says of the roots.
kept: dict[tuple[Path, ...], tuple[list[File], list[str]]] = {}


class RecordsError(ValueError):
    """Records or a notebook parameter that cannot be used: names it and what was expected."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a stack: the reader needs the message alone.
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class File:
    """A record and where it lies."""

    record: Record
    file: Path
    # Of this machine, or published and vouched for (`experiments.trusted`).
    is_vouched: bool = True

    @cached_property
    def case(self) -> Case:
        """What it is of."""
        return self.record.to_case()

    @property
    def machine(self) -> str:
        """The machine's id; with a mark where nobody vouches for what it measured."""
        return self.record.machine.id + ("" if self.is_vouched else UNVOUCHED)

    @cached_property
    def _folder(self) -> Path:
        """The round's folder, whatever link leads to it: a record itself is no link."""
        return _resolved(self.file.parent.absolute())

    @property
    def round(self) -> str:
        """The name of the round's folder."""
        return self._folder.name

    @property
    def host(self) -> str:
        """Which of the machine's hosts; "" in records that do not say."""
        host = self.record.machine.host
        return "" if host is None else host.id

    @cached_property
    def card(self) -> str:
        """Which of the host's cards, or whichever it was spread over; "" where it does not say."""
        cards = self.record.machine.cards
        return card.identity(None if cards is None else [one.model_dump() for one in cards])

    @cached_property
    def path(self) -> str:
        """From the repository root, if it is in there."""
        within = _within_repository(self._folder)
        return (self.file if within is None else within / self.file.name).as_posix()

    @cached_property
    def origin(self) -> str:
        """ "published" for `.../published/<machine>/<round>/<case>.json`, else "local"."""
        parts = self._folder.parts
        return "published" if len(parts) > 2 and parts[-3] == "published" else "local"


# Rounds have thousands of files.
@lru_cache(maxsize=1024)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


@lru_cache(maxsize=1024)
def _within_repository(folder: Path) -> Path | None:
    """A resolved folder from the repository root; None if it is not in there."""
    for root in (folder, *folder.parents):
        if (root / "Snakefile").is_file():
            return folder.relative_to(root)
    return None


def repository(start: Path | None = None) -> Path:
    """The repository root: the nearest folder upward of `start` (default: here) with `Snakefile`.

    Raises RecordsError if there is none.
    """
    start = Path.cwd() if start is None else Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "Snakefile").is_file():
            return folder
    raise RecordsError(f"{start}: not inside the repository (no Snakefile here or above)")


def read(*roots) -> list[File]:
    """Every record in `roots` (folders, searched down, or files), by path.

    Without `roots`: those of `DEFAULT_ROOTS` that exist in this repository. A file that does not
    pass `experiments.gate` is left out and told on stderr. Raises RecordsError naming the folder
    (missing, without records), or, where there is nothing else, the first file and its fault.
    """
    found, left_out = sifted(*roots)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not found:
        raise RecordsError(left_out[0])
    return found


def sifted(*roots) -> tuple[list[File], list[str]]:
    """What `read` returns, and a line of each file that it leaves out: path, field and reason.

    Raises RecordsError where there is neither.
    """
    if not roots:
        base = repository()
        roots = [base / root for root in DEFAULT_ROOTS if (base / root).is_dir()]
        if not roots:
            raise RecordsError(f"{base}: has none of {', '.join(DEFAULT_ROOTS)}")
    roots = [*map(Path, roots)]
    if asked(roots) in kept:
        return kept[asked(roots)]
    for root in roots:
        if not root.exists():
            raise RecordsError(f"{shown(root)}: no such records folder or file")
    found = gate.sift(roots)
    if not found.records and not found.left_out:
        named = ", ".join(map(shown, roots))
        raise RecordsError(f"{named}: no record (*.json) in there; run the experiments first")
    return _files(found.records), found.left_out


def asked(roots: Iterable[Path]) -> tuple[Path, ...]:
    """Roots as they are called, in the folder where they are."""
    return (Path.cwd(), *roots)


def _files(records: dict[Path, Record]) -> list[File]:
    """The same as files, of which those published are looked up among those vouched for."""
    holding: dict[Path, set[tuple[str, str]]] = {}
    # Of a round's folder, by any of its records: those that are vouched for; None where all are.
    of_folder: dict[Path, tuple[set[tuple[str, str]] | None, str]] = {}
    found = []
    for path, record in records.items():
        folder = path.parent
        if folder not in of_folder:
            one = File(record, path)
            of_folder[folder] = None, one.round
            if one.origin == "published":
                published = one._folder.parents[1]
                if published not in holding:
                    holding[published] = trusted.holding(published)
                of_folder[folder] = holding[published], one.round
        held, round_ = of_folder[folder]
        found.append(File(record, path, held is None or (record.machine.id, round_) in held))
    return found


def counting(files: Iterable[File]) -> dict[tuple[str, Case], list[File]]:
    """Of each machine and case the records that count, oldest first; others are history.

    What a machine measured that nobody vouches for is another machine's, and counts there.

    These are the local ones where there are any, and of these those of the code, over as many
    nodes, and trained on the text, that measured the case last. Smoke records count where there are
    no others. Raises RecordsError where two are of one round, which `read` lets none be.
    """
    found: dict[tuple[str, Case], list[File]] = {}
    for one in files:
        # What the day kept from being measured is no measurement.
        if one.record.cause != "day":
            found.setdefault((one.machine, one.case), []).append(one)
    return {key: _counting(of_case) for key, of_case in found.items()}


def _counting(of_case: list[File]) -> list[File]:
    for is_better in (lambda one: one.record.tier != "smoke", lambda one: one.origin == "local"):
        of_case = [one for one in of_case if is_better(one)] or of_case
    of_case = sorted(of_case, key=lambda one: (one.record.started_at, one.path))
    last = of_case[-1].record.software.code_digest
    of_case = [one for one in of_case if one.record.software.code_digest == last]
    # What was not measured says nothing of over how many, nor of what data.
    like = [_of_one_kind(one.record) for one in of_case if one.record.status == "ok"][-1:]
    of_case = [
        one for one in of_case if one.record.status != "ok" or [_of_one_kind(one.record)] == like
    ]
    by_round: dict[str, File] = {}
    for one in of_case:
        if one.round in by_round:
            both = f"{by_round[one.round].file} and {one.file}"
            raise RecordsError(f"{both}: expected one record of a case in round {one.round}")
        by_round[one.round] = one
    return of_case


def _of_one_kind(record: Record) -> tuple[int | None, str | None]:
    """Nodes, and the hash of the text that was learnt: what rounds of one code may differ in."""
    return record.machine.nodes, None if record.learning is None else record.learning.sha256
