"""A published statement, the predicate that judges it, and the file of them all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from analysis.claims.schema import (
    CLAIM,
    SIDES,
    Card,
    Headline,
    History,
    Judgement,
    Mechanism,
    Number,
    Strict,
    System,
    Writeup,
)


class Predicate(Strict):
    """Base of all kinds. `resolution`: one unit of the last printed digit of the figure.

    sort: what an entry of this kind is, one of `schema.SORTS`. judged_sides: which verdicts it has.
    figure_unit: of the published figure, where the kind alone says it; "x" a ratio, "exponent" the
    power of a growth. needs_card: whether it asks what the figures were taken on.
    """

    needs_figure: ClassVar[bool] = False
    needs_card: ClassVar[bool] = True
    figure_unit: ClassVar[str] = ""
    sort: ClassVar[str] = CLAIM
    judged_sides: ClassVar[tuple[str, ...]] = SIDES
    resolution: Number = 0

    def references(self) -> dict[str, str]:
        """Field -> id of each claim whose published number this predicate uses."""
        return {}

    def named_systems(self) -> list[str]:
        """Names of the systems that it mentions."""
        one = [getattr(self, field, None) for field in ("system", "against")]
        several = [getattr(self, field, []) for field in ("systems", "order", "among")]
        return list(dict.fromkeys([*filter(None, one), *itertools.chain(*several)]))

    def with_systems(self, others: Mapping[str, str]) -> Predicate:
        """The same with other systems, by name; without the published figures of the first."""
        one = {
            field: others[value]
            for field in ("system", "against")
            if (value := getattr(self, field, None)) in others
        }
        several = {
            field: [others.get(value, value) for value in getattr(self, field)]
            for field in ("systems", "order", "among")
            if hasattr(self, field)
        }
        figures = {"figures": None} if hasattr(self, "figures") else {}
        return self.model_copy(update={**one, **several, **figures})

    def derived(self, claims_file: ClaimsFile) -> object:
        """The published statement, where it is not a figure of its own."""
        return None

    def words(self, claim: Claim) -> str:
        """The condition under which the claim holds, as a sentence."""
        raise NotImplementedError

    def judge(self, claim: Claim, evidence) -> Judgement:
        """The verdict on the claim by `evidence`, an `analysis.claims.evidence.Evidence`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Subject:
    """What a published figure is about: a quantity of a system at a shape, or of a plot.

    batch, seq_len: None of a figure that is of no one batch or length.
    """

    writeup: str
    quantity: str
    system: str | None = None
    batch: int | None = None
    seq_len: int | None = None
    plot: str | None = None


@dataclass(frozen=True)
class Claim:
    """One published statement, in our words.

    section, line: where the write-up makes it; of a paper `line` is a place such as "table 2".
    strength: one of `schema.STRENGTHS`. scope: a card, where it says that it is about that hardware
    alone. subject: "class" where it is about what was published, "method" where it is about the
    method by that name. history: what the public history
    of the code shows of it. unit: of the figure, "" where it has none.
    """

    id: str
    writeup: str
    section: str
    line: str
    strength: str
    scope: str | None
    subject: str
    history: History | None
    claim: str
    published: object
    unit: str
    kind: str
    predicate: Predicate
    note: str | None
    mechanism: str | None
    see: tuple[str, ...]
    about: Subject | None

    @property
    def sort(self) -> str:
        """One of `schema.SORTS`."""
        return self.predicate.sort


@dataclass(frozen=True)
class ClaimsFile:
    """The claims file, expanded: `claims` by id, in the file's order.

    by_subject: the claims that say what their figure is about. headlines: by name, most important
    first; headline_of: the name of the one that each entry but context belongs to.
    """

    path: str
    cards: Mapping[str, Card]
    mechanisms: Mapping[str, Mechanism]
    systems: Mapping[str, System]
    writeups: Mapping[str, Writeup]
    claims: Mapping[str, Claim]
    by_subject: Mapping[Subject, Claim]
    headlines: Mapping[str, Headline]
    headline_of: Mapping[str, str]

    def experiment(self, writeup: str, system: str) -> str | None:
        """The experiment that measures a system for a write-up."""
        return self.systems[system].experiment or self.writeups[writeup].experiment

    def contains(self, outer: str, inner: str) -> bool:
        """Whether system `outer` runs the whole of system `inner` and more."""
        core = self.systems[outer].contains
        return core is not None and (core == inner or self.contains(core, inner))

    def printed_range(self, claim_id: str) -> tuple[float, float]:
        """The lowest and highest number that is printed as the figure of `claim_id`."""
        claim = self.claims[claim_id]
        half = claim.predicate.resolution / 2
        return claim.published - half, claim.published + half
