"""The cases that two sides have in common: ratios of their times, and by what code they are.

`time in A / time in B`: above 1, B is faster. Sides share no round, so nothing cancels in a ratio,
and where one of them is of one round it has no interval. Cases by the same code and cases by
other code are never in one mean: a ratio of the second kind holds what the code changed, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.advise.interpolation import branches_in_words
from analysis.comparison import differences
from analysis.comparison.differences import Differences
from analysis.comparison.sides import Side
from analysis.records import systems
from analysis.records.files import File
from analysis.selection import views
from analysis.standard import in_words
from analysis.statistics import intervals
from analysis.statistics.intervals import Interval, unpaired_speedup
from analysis.statistics.rounds import occasions
from experiments.case import Case
from experiments.rounds import in_utc

# By what code a case was measured on the two sides: its digest covers the sources behind the case
# and the release of torch; of one commit without changes, the sources are the same.
SAME, TORCH, OTHER = "the same code", "the same commit with another torch", "other code"
CODES = (SAME, TORCH, OTHER)
# What stands over ratios by each: no heading may be read as that of a comparison of hardware.
HEADINGS = {
    SAME: "The same code on both sides",
    TORCH: "The same commit, with another torch",
    OTHER: "Code that differs: no comparison of hardware",
}
# Densities that differ by less are the same.
_ALIKE = 1e-6


@dataclass(frozen=True)
class Pair:
    """A case that both sides have.

    a, b: rows of `frame.load`. ratio: time in A over time in B; None unless both are timed.
    code: one of CODES. backends: what ran on the two sides where that is not one and the same, else
    "". setting: what was measured differently, in words; "" if nothing.
    """

    case: Case
    a: Mapping
    b: Mapping
    ratio: Interval | None
    code: str
    backends: str
    setting: str

    @property
    def system(self) -> str:
        return self.a["system"]

    @cached_property
    def label(self) -> str:
        """The case within its system, in words."""
        row = self.a
        words = [f"{row['seq_len']} tokens"]
        words.append(in_words.case(row, "batch", "heads", "type", "causal", "pass"))
        if row["kv_heads"] != row["heads"]:
            words.append(f"{row['kv_heads']} heads of keys")
        if row["segment_lengths"] is not None:
            words.append(branches_in_words(row["segment_lengths"], row["dilation_rates"]))
        if not math.isnan(row["sparsity"]):
            words.append(views.blocks_in_words(row))
        if row["head_offset"] == "block":
            words.append("block offset")
        if isinstance(row["recipe"], str):
            words.append(f"trained by {row['recipe']}")
        if row["world_size"] == 1:
            words.append("one simulated rank" if row["simulated"] else "one rank")
        if row["seed"]:
            words.append(f"seed {row['seed']}")
        return ", ".join(words)


@dataclass(frozen=True)
class Mean:
    """The geometric mean over the cases of a system by one code; of all systems if that is ""."""

    system: str
    code: str
    pairs: Sequence[Pair]
    ratio: Interval


@dataclass(frozen=True)
class Comparison:
    """Two sides, what differs between them, and the cases that both have, by system and length."""

    a: Side
    b: Side
    differences: Differences
    common: list[Pair]
    is_of_one_occasion: bool

    @cached_property
    def timed(self) -> list[Pair]:
        """Those timed on both sides in one configuration; the backends may differ."""
        return [one for one in self.common if one.ratio is not None and not one.setting]

    @cached_property
    def of_other_backends(self) -> list[Pair]:
        """Those timed ones in which another backend ran."""
        return [one for one in self.timed if one.backends]

    @cached_property
    def left_out(self) -> list[Pair]:
        """Those that were not measured in one configuration."""
        return [one for one in self.common if one.setting]

    @cached_property
    def of_one_side(self) -> list[Pair]:
        """Those that one side timed and the other did not."""
        return [p for p in self.common if not p.setting and _is_timed(p.a) != _is_timed(p.b)]

    @cached_property
    def untimed(self) -> list[Pair]:
        """Those that neither timed."""
        return [p for p in self.common if not p.setting and not (_is_timed(p.a) or _is_timed(p.b))]

    def only(self, side: str) -> list[Case]:
        """The cases that "a" or "b" alone has."""
        own, other = (self.a, self.b) if side == "a" else (self.b, self.a)
        return [case for case in own.rows if case not in other.rows]

    @cached_property
    def means(self) -> list[Mean]:
        """Of each code first that of all systems, then of each system in order.

        Cases in which another backend ran are in none.
        """
        found = []
        for code in CODES:
            fine = [one for one in self.timed if one.code == code and not one.backends]
            if fine:
                found.append(Mean("", code, fine, self._mean(fine)))
            for system in systems.ordered(one.system for one in fine):
                own = [one for one in fine if one.system == system]
                found.append(Mean(system, code, own, self._mean(own)))
        return found

    def code_in_words(self) -> str:
        """For how many of the timed cases the code is the same, and what the ratios then say."""
        counts = Counter(one.code for one in self.timed)
        count = len(self.timed)
        if not count:
            return "No case was timed on both sides."
        hardware = self.differences.of("hardware")
        software = [one for one in self.differences.of("software") if one.name != "git commit"]
        said = [f"{counts[SAME]} of {count} cases were measured by the same code on both sides."]
        if counts[TORCH]:
            said.append(f"{counts[TORCH]} were by the same commit with another torch.")
        if counts[OTHER]:
            is_all = counts[OTHER] == count
            which = "All ratios below are" if is_all else f"{counts[OTHER]} ratios are"
            said.append(
                f"{which} of code that differs: what the code changed is in them together with all "
                "else that differs, and they are no comparison of hardware."
            )
        elif hardware and software:
            said.append(
                "Hardware and software both differ: a ratio is of all of it together, and cannot "
                "be put down to one."
            )
        return " ".join(said)

    def _mean(self, pairs: Sequence[Pair]) -> Interval:
        return _ratio([one.a for one in pairs], [one.b for one in pairs], self.is_of_one_occasion)


def compare(a: Side, b: Side) -> Comparison:
    """The comparison of two sides, which have no record in common, and maybe no case."""
    common = [case for case in a.rows if case in b.rows]
    # Of two that have no case in common, all that they have.
    told = ([one for case in common or side.rows for one in side.files[case]] for side in (a, b))
    together = _is_of_one_occasion([*a.rows.values(), *b.rows.values()])
    pairs = [_pair(case, a, b, together) for case in common]
    places = {name: at for at, name in enumerate(systems.ordered(one.system for one in pairs))}
    pairs.sort(key=lambda p: (places[p.system], p.case.pass_, p.case.seq_len, p.label))
    return Comparison(a, b, differences.between(*told), pairs, together)


def _pair(case: Case, a: Side, b: Side, together: bool) -> Pair:
    rows, files = (a.rows[case], b.rows[case]), (a.files[case], b.files[case])
    is_timed = all(map(_is_timed, rows))
    ratio = _ratio(*([row] for row in rows), together) if is_timed else None
    backends = _backends(*files) if is_timed else ""
    return Pair(case, *rows, ratio, _code(*files), backends, _setting(rows, files))


def _is_timed(row: Mapping) -> bool:
    return row["status"] == "ok" and bool(row["samples"])


def _ratio(a: Sequence[Mapping], b: Sequence[Mapping], together: bool) -> Interval:
    """Geometric mean time of the rows of A over that of the same cases' of B."""
    sides = (
        intervals.Side(tuple(row["samples"] for row in rows), rows[0]["spread"]) for rows in (a, b)
    )
    return unpaired_speedup(*sides, is_of_one_occasion=together)


def _backends(a: Sequence[File], b: Sequence[File]) -> str:
    """What ran on the two sides, where that is not one and the same, else ""."""
    ran = [{one.record.backend for one in side if one.record.status == "ok"} for side in (a, b)]
    return "" if len(ran[0] | ran[1]) == 1 else " / ".join(" and ".join(sorted(one)) for one in ran)


def _code(a: Sequence[File], b: Sequence[File]) -> str:
    """By what code the two sides of a case are. The records of a side are of one digest."""
    software = [[one.record.software for one in side] for side in (a, b)]
    if software[0][0].code_digest == software[1][0].code_digest:
        return SAME
    sources = [
        {(one.git_commit, one.tile_tables) for one in side if one.git_commit and not one.git_dirty}
        for side in software
    ]
    torches = [{one.torch for one in side} for side in software]
    return TORCH if sources[0] & sources[1] and torches[0] != torches[1] else OTHER


def _setting(rows: Sequence[Mapping], files: Sequence[Sequence[File]]) -> str:
    """What was measured differently on the two sides, in words; "" if nothing."""
    tiers = [row["tier"] for row in rows]
    if tiers[0] != tiers[1] and "smoke" in tiers:
        return f"limits of the tier: {' / '.join(tiers)}"
    nodes = [row["nodes"] for row in rows]
    if nodes[0] != nodes[1]:
        return f"nodes of the ring: {nodes[0]} / {nodes[1]}"
    if not all(map(_is_timed, rows)):
        return ""
    replicates = [
        [r for one in side if one.record.status == "ok" for r in one.record.replicates]
        for side in files
    ]
    if all(row["device_kind"] == "cuda" for row in rows):
        by = [{one.timed_by or "not recorded" for one in own} for own in replicates]
        if by[0] != by[1]:
            return f"timed by: {' / '.join(' and '.join(sorted(one)) for one in by)}"
    densities = [row["realised_density"] for row in rows]
    alike = math.isclose(*densities, rel_tol=_ALIKE)
    if not alike and not _backends(*files):
        return f"realised density: {densities[0]:.4g} / {densities[1]:.4g}"
    return ""


def _is_of_one_occasion(rows: Sequence[Mapping]) -> bool:
    """Whether no case began more than an hour after the one before, on any host but one."""
    times = [in_utc(time) for row in rows for _, time in row["began"]]
    found = occasions({str(place): (time, time) for place, time in enumerate(times)})
    hosts = {(row["machine"], one.host) for row in rows for one in row["samples"]}
    return len(hosts) == len({*found.values()}) == 1
