"""Who vouches for published records: `results/published/TRUSTED`, one line per round.

    <machine>/<round>  <git's tree SHA-1 of the round's folder>  <who>

What a line vouches for are the files as they were then: a record that was changed or added later
shows by the SHA-1. `publish` adds the lines of what it publishes; a reviewer sees them in the diff.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments.atomic_write import atomic_write
from experiments.digest import ROOT
from experiments.git import git
from experiments.record import RecordError
from experiments.shown import shown
from experiments.source_tree import tree_sha

NAME = "TRUSTED"
_LINE = re.compile(r"([a-z0-9-]{1,200})/([0-9TZ-]{18})  ([0-9a-f]{40})  (\S.{0,100})", re.ASCII)
_HEAD = """\
# Rounds of records that somebody vouches for: only these judge claims; others are shown and marked.
# To check a line: git rev-parse HEAD:results/published/<machine>/<round>
"""


@dataclass(frozen=True)
class Vouched:
    """A line: `sha` of the round's folder, and who vouches for it."""

    machine: str
    round: str
    sha: str
    who: str


def read(published: Path) -> list[Vouched]:
    """The lines of the file in `published`, if there is one; RecordError of a bad line."""
    path = published / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{shown(path)}: cannot be read: {shown(error)}") from None
    found: dict[tuple[str, str], Vouched] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match or not match[4].isprintable():
            expected = "expected <machine>/<round>  <40 hex digits>  <who>"
            raise RecordError(f"{shown(path)}: line {number}: {expected}, got {shown(line[:80])!r}")
        one = Vouched(*match.groups())
        if (one.machine, one.round) in found:
            raise RecordError(f"{shown(path)}: line {number}: the round stands there twice")
        found[one.machine, one.round] = one
    return [*found.values()]


def holding(published: Path) -> set[tuple[str, str]]:
    """(machine, round) of those that are as they were when somebody vouched for them."""
    return {(one.machine, one.round) for one in read(published) if _holds(published, one)}


def _holds(published: Path, one: Vouched) -> bool:
    """Whether the round's folder can be read and is as it was; a link is no folder."""
    folder = published / one.machine / one.round
    try:
        is_link = folder.is_symlink() or folder.parent.is_symlink()
        return not is_link and tree_sha(folder) == one.sha
    except OSError:
        return False


def why_not_beside(published: Path, machine: str, round_: str) -> str | None:
    """Why nothing may be added to a round that is there: who vouches for it would for all of it."""
    folder = published / machine / round_
    own = [one for one in read(published) if (one.machine, one.round) == (machine, round_)]
    if not folder.exists() or any(_holds(published, one) for one in own):
        return None
    return f"{shown(folder)}: holds what nobody vouches for ({NAME}): nothing is put beside it"


def add(published: Path, rounds: Iterable[tuple[str, str]], who: str) -> None:
    """Vouch for rounds, (machine, round) each, as they are now."""
    known = {(one.machine, one.round): one for one in read(published)}
    for machine, round_ in rounds:
        sha = tree_sha(published / machine / round_)
        # Who vouched for the same before does so still.
        if (machine, round_) not in known or known[machine, round_].sha != sha:
            known[machine, round_] = Vouched(machine, round_, sha, who)
    lines = [
        f"{one.machine}/{one.round}  {one.sha}  {one.who}\n" for _, one in sorted(known.items())
    ]
    with atomic_write(published / NAME) as partial:
        partial.write_text(_HEAD + "".join(lines), encoding="utf-8")


def myself() -> str:
    """Who publishes here, by git; ValueError where it does not say."""
    who = git(ROOT, "config", "user.name") or ""
    if not who or not who.isprintable() or len(who) > 100:
        raise ValueError("publish: say who vouches for the records: git config user.name '...'")
    return who
