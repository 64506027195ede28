"""A published statement, the predicate that judges it, and the file of them all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from analysis.claims.schema import Card, Judgement, Mechanism, Number, Strict, System, Writeup


class Predicate(Strict):
    """Base of all kinds. `resolution`: one unit of the last printed digit of the figure."""

    needs_figure: ClassVar[bool] = False
    resolution: Number = 0

    def references(self) -> dict[str, str]:
        """Field -> id of each claim whose published number this predicate uses."""
        return {}

    def named_systems(self) -> list[str]:
        """Names of the systems that it mentions."""
        one = [getattr(self, field, None) for field in ("system", "against")]
        several = [getattr(self, field, []) for field in ("systems", "order", "among")]
        return list(dict.fromkeys([*filter(None, one), *itertools.chain(*several)]))

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
    """One published statement, in our words; `section` says where the write-up makes it."""

    id: str
    writeup: str
    section: str
    claim: str
    published: object
    kind: str
    predicate: Predicate
    note: str | None
    mechanism: str | None
    see: tuple[str, ...]
    about: Subject | None


@dataclass(frozen=True)
class ClaimsFile:
    """The claims file, expanded: `claims` by id, in the file's order.

    by_subject: the claims that say what their figure is about.
    """

    path: str
    cards: Mapping[str, Card]
    mechanisms: Mapping[str, Mechanism]
    systems: Mapping[str, System]
    writeups: Mapping[str, Writeup]
    claims: Mapping[str, Claim]
    by_subject: Mapping[Subject, Claim]

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
