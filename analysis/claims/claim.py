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
        """Names of the systems that it speaks of."""
        one = [getattr(self, field, None) for field in ("system", "against")]
        several = [getattr(self, field, []) for field in ("systems", "order", "among")]
        return list(dict.fromkeys([*filter(None, one), *itertools.chain(*several)]))

    def derived(self, claims_file: ClaimsFile) -> object:
        """The published statement, where it is not a figure of its own."""
        return None

    def words(self, claim: Claim) -> str:
        raise NotImplementedError

    def judge(self, claim: Claim, evidence) -> Judgement:
        """What `analysis.claims.evidence.Evidence` says of the claim."""
        raise NotImplementedError


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


@dataclass(frozen=True)
class ClaimsFile:
    """The claims file, expanded: `claims` by id, in the file's order."""

    path: str
    cards: Mapping[str, Card]
    mechanisms: Mapping[str, Mechanism]
    systems: Mapping[str, System]
    writeups: Mapping[str, Writeup]
    claims: Mapping[str, Claim]

    def experiment(self, writeup: str, system: str) -> str | None:
        """The experiment that measures a system for a write-up."""
        return self.systems[system].experiment or self.writeups[writeup].experiment

    def contains(self, outer: str, inner: str) -> bool:
        """Whether system `outer` runs the whole of system `inner` and more."""
        core = self.systems[outer].contains
        return core is not None and (core == inner or self.contains(core, inner))

    def figure(self, claim_id: str) -> tuple[float, float]:
        """The lowest and highest number that is printed as the figure of `claim_id`."""
        claim = self.claims[claim_id]
        half = claim.predicate.resolution / 2
        return claim.published - half, claim.published + half
