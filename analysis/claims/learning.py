"""Predicates on what models learnt: one attention beside another, longer rows beside shorter ones.

A trend that large models showed is judged at our scale, which is part of the verdict. A statement
about models of a size is judged by models of that size alone. Models that learnt next to nothing,
or few of them, leave either undecided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from analysis.claims.claim import Predicate
from analysis.claims.evidence import ANY_CUDA
from analysis.claims.machines import of_all_machines
from analysis.claims.planned import planned
from analysis.claims.scale import (
    Scale,
    flops_apart,
    flops_over,
    named,
    ours,
    pattern,
    reaching,
    schedule,
    shape_of,
    size_of,
)
from analysis.claims.schema import (
    CARD,
    FAILS,
    HOLDS,
    METHOD,
    NONE,
    NOT_MEASURED,
    OPEN,
    RECORDS,
    UNDECIDED,
    Judgement,
    Number,
    Shape,
    SystemName,
)
from analysis.claims.wording import comma_separated, interval_text, measured_as, shape_words
from analysis.records import learnt
from analysis.statistics.intervals import Interval
from experiments.training.recipes import RECIPES, TEXT

# Models of text have learnt something where they are better than an n-gram model of this order,
# which needs no attention; those of a task, where this share of their answers is right.
ORDER, LEARNT = 3, 0.95
# Fewer on either side decide nothing.
SEEDS = 3
_SOURCES = tuple(sorted({recipe.source for recipe in RECIPES.values()}))
_LITTLE = {
    True: f"no model of the longest rows is better than a Kneser-Ney model of order {ORDER}",
    False: f"no model of the longest rows gives {100 * LEARNT:g} % of the answers rightly",
}


class _OfTrainings(Predicate):
    """Base: a difference of `measure` between trainings, at one length or several.

    by: the least difference that counts; where negative, how much more still counts as none. Holds
    where the whole interval over seeds lies beyond it at every length; does not hold where that of
    the longest rows lies on the other side.
    """

    needs_card: ClassVar[bool] = False
    judged_sides: ClassVar[tuple[str, ...]] = (METHOD,)
    system: SystemName
    at: Shape = Shape()
    learns: Literal[_SOURCES]
    measure: Literal[learnt.MEASURES] = learnt.LOSS
    by: Number = 0
    scale: Scale | None = None

    @property
    def _unit(self) -> str:
        """Of the measure."""
        if self.measure == learnt.ACCURACY:
            return ""
        return "bits/byte" if self.learns == TEXT else "bits"

    def _relation(self) -> str:
        if self.by == 0:
            return "below"
        size = f"{abs(self.by):g} {self._unit}".strip()
        return f"at most {size} above" if self.by < 0 else f"more than {size} below"

    def _needed(self) -> list[tuple[str, Mapping]]:
        """(system, shape) of each side."""
        raise NotImplementedError

    def _pairs(self, sides: list[list[Mapping]]) -> list[tuple[Mapping, Mapping]]:
        """What is compared, the longest rows last; sides: rows of one machine, recipe and text."""
        raise NotImplementedError

    def _at_flops(self, pair: Sequence[Mapping]) -> float | None:
        """After how many FLOPs the two are compared; None for at the end of both."""
        return None

    def judge(self, claim, evidence):
        groups: dict[tuple, list[list[Mapping]]] = {}
        needed = self._needed()
        for place, (system, at) in enumerate(needed):
            for row in evidence.trainings(claim, system, at):
                if _learns(row, self.learns) and (self.scale is None or self.scale.holds(row)):
                    key = row["machine"], row["recipe"], row["learning"].sha256 or ""
                    groups.setdefault(key, [[] for _ in needed])[place].append(row)
        compared: dict[str, list] = {}
        for (machine, *_), sides in sorted(groups.items()):
            pairs = self._pairs(sides)
            if pairs and size_of(pairs) > size_of(compared.get(machine, [])):
                compared[machine] = pairs
        if not compared:
            return self._waits(claim, evidence)
        return _of_largest(
            [(size_of(pairs), self._of_machine(pairs)) for pairs in compared.values()]
        )

    def _of_machine(self, pairs) -> Judgement:
        # Of shorter rows those count that something was learnt of.
        pairs = [*filter(self._have_learnt, pairs[:-1]), pairs[-1]]
        rows = tuple(row for pair in pairs for row in pair)
        found = [learnt.difference(*pair, self.measure, self._at_flops(pair)) for pair in pairs]
        text = "; ".join(self._told(*one) for one in zip(pairs, found, strict=True))
        verdict, refusal = UNDECIDED, self._refusal(pairs)
        if refusal is not None:
            text = f"{refusal}: {text}"
        elif found[-1] is not None and found[-1].low > -self.by:
            verdict = FAILS
        elif all(one is not None and one.high < -self.by for one in found):
            verdict = HOLDS
        last = next((one for one in reversed(found) if one is not None), None)
        measured = None if last is None else measured_as(last, self._unit)
        return Judgement(verdict, RECORDS, text, measured, rows, ours(rows))

    def _refusal(self, pairs: Sequence[Sequence[Mapping]]) -> str | None:
        """Why nobody should sign what these trainings say, whatever it is; None where one may."""
        rows = [row for pair in pairs for row in pair]
        fewest = min(len(row["trainings"]) for row in rows)
        if not self._have_learnt(pairs[-1]):
            return _LITTLE[self.learns == TEXT]
        return f"by {fewest} seeds, where {SEEDS} are needed" if fewest < SEEDS else None

    def _have_learnt(self, pair: Sequence[Mapping]) -> bool:
        """Whether one side has, so that what the other lacks is a finding."""
        return any(map(_has_learnt, pair))

    def _told(self, pair, found: Interval | None) -> str:
        lengths = " and ".join(dict.fromkeys(str(row["seq_len"]) for row in pair))
        if found is None:
            return f"at {lengths} tokens the two were never tested after as many FLOPs"
        at = self._at_flops(pair)
        own, base = (learnt.interval(row, self.measure, at).value for row in pair)
        unit = f" {self._unit}".rstrip()
        of = " beside ".join(filter(None, dict.fromkeys(map(pattern, pair))))
        cost = f", in steps of {flops_over(*pair):.2g} times as many"
        when = "" if at is None else f" after {at:.2g} FLOPs{cost}"
        return (
            f"at {lengths} tokens {own:.4g} beside {base:.4g}{unit}{when}, a difference of "
            f"{interval_text(found)}{f' ({of})' if of else ''}"
        )

    def _waits(self, claim, evidence) -> Judgement:
        """What is missing, and which tier of the grid has it."""
        if self.scale is not None:
            text = f"said of {self.scale.words}; no training of ours is that large"
            needs = f"trainings of {self.scale.words}, on {ANY_CUDA}"
            return Judgement(CARD, NONE, text, needs=needs)
        sides = [evidence.variants(system) for system, _ in self._needed()]
        names = comma_separated(dict.fromkeys(side[0] for side in sides))
        text = f"missing: trainings of {names} on {named(self.learns)}"
        experiment = evidence.claims_file.writeups[claim.writeup].experiment
        for tier, verdict, needs in (("laptop", NOT_MEASURED, "a run"), ("gpu", CARD, ANY_CUDA)):
            has = {
                row["variant"]
                for row in planned(tier)
                if row["experiment"] == experiment and _learns(row, self.learns)
            }
            if all(has.intersection(side) for side in sides):
                command = f"python -m experiments run {experiment} --tier {tier}"
                return Judgement(verdict, NONE, text, needs=needs, command=command)
        text = f"{text}; no experiment of ours has that case"
        return Judgement(NOT_MEASURED, NONE, text, needs="a case")


class Learns(_OfTrainings):
    """The `measure` of `system` is below that of `against`, at each length that both have.

    After as many FLOPs, all that the cheaper training took, or after as many steps. Both sides have
    the recipe, heads and tokens of a step in common. Of several schedules of branches those count
    whose longest segment is the whole row, where there are any. Of these, and of several
    sparsities, the two are compared whose steps are closest in FLOPs. saves: by what factor a step
    of `system` has to be cheaper, where the statement is about what that gains; nothing is decided
    where rows are too short to save as much.
    """

    against: SystemName
    against_at: Shape = Shape()
    after: Literal["equal FLOPs", "equal steps"]
    saves: Number | None = Field(None, gt=1)

    def words(self, claim):
        size = "" if self.scale is None else f", by {self.scale.words}"
        cheaper = "" if self.saves is None else f" where a step is {self.saves:g} times cheaper"
        own, other = _at(self.system, self.at), _at(self.against, self.against_at)
        return (
            f"{self.measure} of {own} on {named(self.learns)} is {self._relation()} that of "
            f"{other} after {self.after}, at every length{cheaper}{size}"
        )

    def _needed(self):
        return [(self.system, self.at.given()), (self.against, self.against_at.given())]

    def _pairs(self, sides):
        shared = set.intersection(*({shape_of(row) for row in rows} for rows in sides))
        found = []
        for shape in sorted(shared):
            own, base = (
                reaching([row for row in rows if shape_of(row) == shape]) for rows in sides
            )
            pairs = [(one, other) for one in own for other in base]
            enough = [pair for pair in pairs if self._saves_enough(pair)]
            found.append(min(enough or pairs, key=flops_apart))
        return [pair for pair in found if self._saves_enough(pair)] or found[-1:]

    def _saves_enough(self, pair: Sequence[Mapping]) -> bool:
        return self.saves is None or flops_over(*pair) <= 1 / self.saves

    def _refusal(self, pairs):
        if not self._saves_enough(pairs[-1]):
            return "on such rows a step saves too few FLOPs to tell"
        return super()._refusal(pairs)

    def _at_flops(self, pair):
        return learnt.equal_flops(*pair) if self.after == "equal FLOPs" else None


class LongerContext(_OfTrainings):
    """Trained and tested on the longest rows, `system` has a `measure` below that on the shortest.

    After as many steps of as many tokens each, by the same recipe and heads, with the same branches
    but for their size. Of several schedules that at most lengths is taken, of these one whose
    longest segment is the whole row, then that with the most FLOPs. Both must have learnt
    something: a model that n-grams beat does not use what a longer row gives.
    """

    def words(self, claim):
        own = _at(self.system, self.at)
        return (
            f"{self.measure} of {own} on {named(self.learns)} is, trained on the longest rows, "
            f"{self._relation()} that on the shortest, after equal steps"
        )

    def _needed(self):
        return [(self.system, self.at.given())]

    def _pairs(self, sides):
        groups: dict[tuple, dict[int, Mapping]] = {}
        for row in sides[0]:
            length, batch, *others = shape_of(row)
            key = (schedule(row), length * batch, *others)
            groups.setdefault(key, {})[length] = row
        own = max(groups.values(), key=_most_telling, default={})
        return [(own[max(own)], own[min(own)])] if len(own) > 1 else []

    def _have_learnt(self, pair):
        return all(map(_has_learnt, pair))


def _most_telling(rows: Mapping[int, Mapping]) -> tuple:
    longest = rows[max(rows)]
    is_whole = max(longest["segment_lengths"] or (0,)) >= longest["seq_len"]
    return len(rows), is_whole, longest["useful_flops"]


def _of_largest(results: Sequence[tuple[tuple[int, int], Judgement]]) -> Judgement:
    """By the largest models, then the longest rows, of those that settle it; others are told.

    Machines of one size that oppose each other differ; a smaller size is no other opinion.
    """
    settled = [one for one in results if one[1].verdict not in OPEN] or results
    largest = max(size for size, _ in settled)
    deciding = [found for size, found in settled if size == largest]
    found = of_all_machines(sorted(deciding, key=lambda one: one.rows[0]["machine"]))
    others = [one for _, one in results if one not in deciding]
    told = [f"{one.verdict} {one.stand_in}: {one.reason}" for one in others]
    rows = found.rows + tuple(row for one in others for row in one.rows)
    return replace(found, reason="; ".join([found.reason, *told]), rows=rows)


def _at(system: str, shape: Shape) -> str:
    words = shape_words(shape.given())
    return f"{system} ({words})" if words else system


def _learns(row: Mapping, source: str) -> bool:
    recipe = row.get("recipe")
    return recipe in RECIPES and RECIPES[recipe].source == source


def _has_learnt(row: Mapping) -> bool:
    counts = row["learning"].n_gram_losses
    if counts is None:
        return learnt.interval(row, learnt.ACCURACY).value >= LEARNT
    return learnt.interval(row).value < counts[str(ORDER)]
