"""The records, work and memory by which a predicate judges a claim."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache

import pandas as pd

from analysis.claims.claim import Claim, ClaimsFile
from analysis.claims.machines import of_all_machines
from analysis.claims.planned import planned
from analysis.claims.schema import (
    AS_PUBLISHED,
    CARD,
    DIFFERS,
    FAILS,
    HEADROOM,
    HISTORY,
    HOLDS,
    METHOD,
    NONE,
    NOT_MEASURED,
    RECORDS,
    UNDECIDED,
    Judgement,
)
from analysis.claims.wording import comma_separated, shape_words
from analysis.records.units import ITEM_BYTES
from experiments.case import PATTERN_FIELDS, RANK_FIELDS
from experiments.cost.pairs import block_pairs
from models.patterns.branches import DilatedBranches
from models.registry import VARIANTS

_BRANCHES = ("segment_lengths", "dilation_rates")
# Where replicas of the published code are measured.
_REPLICAS = "as_published"
ANY_CUDA = "any CUDA device"


class Evidence:
    """A claims file and the frame of records that one side of its claims is judged over.

    side: AS_PUBLISHED takes the replica of each system, METHOD the system computed exactly.
    """

    def __init__(self, claims_file: ClaimsFile, frame: pd.DataFrame, side: str = METHOD):
        self.claims_file = claims_file
        self.is_published = side == AS_PUBLISHED
        self._rows = _by_system(_of_newest_code(frame.to_dict("records")))

    def judge(self, claim: Claim) -> Judgement:
        """The verdict of this side on a claim."""
        if self.is_published and claim.history is not None:
            return Judgement(claim.history.verdict, HISTORY, claim.history.reason)
        return self._beside_fused(claim, self._hedged(claim))

    def _hedged(self, claim: Claim) -> Judgement:
        """What the predicate finds; of what is possible, seeing it once is enough.

        Not seeing it in records refutes nothing.
        """
        found = claim.predicate.judge(claim, self)
        if claim.strength != "may" or found.basis != RECORDS:
            return found
        if found.verdict == FAILS:
            text = f"said to be possible only, and not seen here: {found.reason}"
            return replace(found, verdict=UNDECIDED, reason=text)
        if found.verdict == DIFFERS:
            text = f"said to be possible, and seen: {found.reason}"
            return replace(found, verdict=HOLDS, reason=text)
        return found

    def _beside_fused(self, claim: Claim, found: Judgement) -> Judgement:
        """`found`, with what the same comparison gives over attention that is fused."""
        predicate = claim.predicate
        if self.is_published or not found.rows:
            return found
        fused = {
            name: self.claims_file.systems[name].fused
            for name in predicate.named_systems()
            if self.claims_file.systems[name].fused is not None
        }
        if not fused or len(predicate.named_systems()) == len(fused):
            return found
        other = replace(claim, predicate=predicate.with_systems(fused))
        beside = self._hedged(other)
        if beside.verdict in (CARD, NOT_MEASURED):
            return found
        over = self.claims_file.systems[next(iter(fused.values()))].name
        return replace(
            found,
            reason=f"{found.reason}; over {over}: {beside.verdict} ({beside.reason})",
            rows=found.rows + beside.rows,
            beside={"over": over, "verdict": beside.verdict, "measured": beside.measured},
        )

    def variant(self, system: str) -> str | None:
        """The variant that is measured for a system on this side; None without a replica."""
        known = self.claims_file.systems[system]
        return known.replica if self.is_published else known.variant

    def is_on_card(self, claim: Claim, rows: Iterable[Mapping]) -> bool:
        """Whether the rows are of the card that the write-up's figures were taken on."""
        card = self.claims_file.cards[self.claims_file.writeups[claim.writeup].card]
        return all(card.device in row["device"] for row in rows)

    def is_its_setting(self, claim: Claim, rows: Iterable[Mapping], at: Mapping) -> bool:
        """Whether the rows are of the published type, batch, heads and causality."""
        shape = self.shape(claim, at)
        fields = [name for name in ("dtype", "batch", "heads", "is_causal") if name in shape]
        return all(row[name] == shape[name] for row in rows for name in fields)

    def only_the_card(self, claim: Claim, found: Judgement) -> Judgement:
        """What was found on another device, which does not decide the claim."""
        card = self.claims_file.cards[self.claims_file.writeups[claim.writeup].card]
        text = f"{found.reason}; another device does not decide what was measured there"
        return replace(found, verdict=CARD, basis=NONE, needs=card.device, reason=text)

    def is_one_code(self, first: str, second: str) -> bool:
        """Whether the published code under both names was one and the same."""
        one, other = (self.claims_file.systems[name].one_code or name for name in (first, second))
        return self.is_published and one == other

    def is_one_replica(self, first: str, second: str) -> bool:
        """Whether both systems have the same replica, which then cannot tell them apart."""
        return self.is_published and self.variant(first) == self.variant(second) is not None

    def shape(self, claim: Claim, at: Mapping, system: str | None = None) -> dict:
        """The write-up's conditions, overridden by the system's sparsity and then by `at`.

        A None in `at` overrides nothing: sizes need a value.
        """
        fixed = self.claims_file.writeups[claim.writeup].conditions.given()
        sparsity = self.claims_file.systems[system].sparsity if system else None
        fixed |= {} if sparsity is None else {"sparsity": sparsity}
        return fixed | {k: v for k, v in at.items() if v is not None}

    def rows(self, claim: Claim, system: str, at: Mapping) -> list[dict]:
        """Every record of the system at the shape, any status, any machine."""
        found = self._matching(self._rows, claim, system, at)
        # Longest segments last: the last one is used where the write-up states no segments.
        return sorted(found, key=lambda r: (r["segment_lengths"] or (), r["seed"], r["path"]))

    def trainings(self, claim: Claim, system: str, at: Mapping) -> list[dict]:
        """Records of trainings with the system at the shape, on any machine, by the rule of heads.

        That of the paper, where a system has offsets of heads; each holds trainings.
        """
        found = (
            row
            for variant in self.variants(system)
            for row in self._matching(self._rows, claim, system, at, trained_as=variant)
            if row["trainings"] and row["head_offset"] != "block"
        )
        return sorted(found, key=lambda row: row["path"])

    def variants(self, system: str) -> tuple[str, ...]:
        """Those that a system is trained as."""
        known = self.claims_file.systems[system]
        return known.variant, *known.also

    def _matching(
        self, rows: _Rows, claim: Claim, system: str, at: Mapping, *, trained_as: str | None = None
    ) -> list[dict]:
        """Those of `rows`, as `_by_system` has them, that are of the system at the shape.

        trained_as: of trainings with that variant; a step of a model is no pass of attention.
        """
        writeup = self.claims_file.writeups[claim.writeup]
        variant = trained_as or self.variant(system)
        if variant is None:
            return []
        known = VARIANTS[variant]
        other = [] if known.takes == "blocks" else [*PATTERN_FIELDS["blocks"]]
        other += [] if known.shard_order else [*RANK_FIELDS, "min_world_size"]
        other += [k for k, v in at.items() if v is None]
        shape = {k: v for k, v in self.shape(claim, at, system).items() if k not in other}
        rates, least = shape.pop("dilation_rates", None), shape.pop("min_seq_len", 0)
        fewest = shape.pop("min_world_size", None)
        pairs = writeup.branches.get(shape.get("seq_len")) if rates is None else None
        branches = known.takes == "branches"
        found = []
        experiment = self.claims_file.experiment(claim.writeup, system)
        if known.replica_of is not None:
            experiment = _REPLICAS
        # Branches are those of an experiment, unless they do not matter; what has none is one case
        # in all of them.
        anywhere = not branches or least
        experiments = {one for one, name in rows if name == variant} if anywhere else {experiment}
        among = {
            row["path"]: row
            for one in sorted(experiments)
            for row in _of_length(rows.get((one, variant), {}), shape.get("seq_len"))
        }
        for row in among.values():
            if any(row[k] != v for k, v in shape.items()) or row["kv_heads"] != row["heads"]:
                continue
            if _is_training(row) != (trained_as is not None):
                continue
            segments = tuple(zip(*(row[k] or () for k in _BRANCHES), strict=True))
            if branches and pairs is not None and segments != tuple(map(tuple, pairs)):
                continue
            if branches and rates is not None and row["dilation_rates"] != tuple(rates):
                continue
            if fewest is not None and not row["world_size"] >= fewest:
                continue
            if row["seq_len"] >= least:
                found.append(row)
        return found

    def on_records(
        self,
        claim: Claim,
        needs: Mapping[object, tuple[str, Mapping]],
        decide: Callable[[dict, list[str]], Judgement],
        *,
        at_least: int | None = None,
        quantity: str = "time",
        card: str | None = None,
        device_kind: str | None = None,
    ) -> Judgement:
        """Decide on each machine that has `at_least` (default: all) of the needed records.

        needs: label -> (system, shape). decide(rows by label, names of those missing). The
        write-up's stand-in shapes are tried where a ratio needs no particular card. `card`, or a
        scope of the claim that names one: records of other devices decide nothing.
        """
        card = card or claim.scope
        device = self.claims_file.cards[card].device if card else ""
        column = {"time": "median_ms", "memory": "peak_memory_bytes"}[quantity]
        stand_ins = [{}]
        if not card and not device_kind:
            stand_ins += [s.given() for s in self.claims_file.writeups[claim.writeup].stand_ins]
        nearest: dict = {}
        for stand_in in stand_ins:
            machines: dict[str, dict] = {}
            for label, (system, at) in needs.items():
                for row in self.rows(claim, system, {**at, **stand_in}):
                    fits = device in row["device"] and device_kind in (None, row["device_kind"])
                    # A process on a CPU may not grow at all: then its memory was not measured.
                    if fits and row["status"] == "ok" and row[column] > 0:
                        machines.setdefault(row["machine"], {})[label] = row
            full = [m for m in machines.values() if len(m) >= (at_least or len(needs))]
            if full:
                break
            if not stand_in:
                nearest = max(machines.values(), key=len, default={})
        else:
            return self.waits(claim, needs, card=card, device_kind=device_kind, have=nearest)
        full.sort(key=lambda rows: (-len(rows), *self._rank(claim, next(iter(rows.values())))))
        results = []
        for rows in full:
            found = decide(rows, self.missing(claim, needs, rows))
            # Systems were recorded but no pair of them: nothing was measured, so no evidence.
            used = tuple(rows.values()) if found.measured else ()
            results.append(
                replace(found, rows=used, stand_in=self._stand_in(claim, used, stand_in))
            )
        return of_all_machines(results)

    def on_machines(self, claim, system, at, decide: Callable[[list], Judgement]) -> Judgement:
        """Decide on all records of one system at a shape, whatever their status, by machine."""
        rows = sorted(self.rows(claim, system, at), key=lambda row: self._rank(claim, row))
        if not rows:
            return self.waits(claim, {"system": (system, at)})
        groups: dict[str, list[dict]] = {}
        for row in rows:
            groups.setdefault(row["machine"], []).append(row)
        return of_all_machines(
            [
                replace(decide(g), rows=tuple(g), stand_in=self._stand_in(claim, g, {}))
                for g in groups.values()
            ]
        )

    def waits(
        self,
        claim: Claim,
        needs: Mapping[object, tuple[str, Mapping]],
        *more: str,
        card: str | None = None,
        device_kind: str | None = None,
        have: Mapping = {},
    ) -> Judgement:
        """Not decided for want of records: of a card, or of cases, and what would measure them.

        A case that only the tier for GPUs has needs a card. `more` follows in the reason.
        """
        missing = self.missing(claim, needs, have)
        told = f"missing: {'; '.join(missing)}" if missing else "one replica stands for both"
        reason = "; ".join([told, *more])
        if not missing:
            return Judgement(NOT_MEASURED, NONE, reason, needs="a replica of each")
        for name in dict.fromkeys(system for one, (system, _) in needs.items() if one not in have):
            if self.variant(name) is None:
                text = f"no replica of {self.claims_file.systems[name].name} to measure"
                device = self.claims_file.cards[card].device if card else device_kind and ANY_CUDA
                lacks = " and ".join(filter(None, ["a replica", device]))
                return Judgement(NOT_MEASURED, NONE, "; ".join([text, *more]), needs=lacks)
        if card is not None:
            device = self.claims_file.cards[card].device
            return Judgement(CARD, NONE, f"no record on a {device}", needs=device)
        commands: dict[str | None, str | None] = {}
        for label, (system, at) in needs.items():
            if label in have:
                continue
            tier, command = self._planned(claim, system, at, device_kind)
            commands.setdefault(tier, command)
        if device_kind == "cuda" or ("gpu" in commands and None not in commands):
            return Judgement(CARD, NONE, reason, needs=ANY_CUDA, command=commands.get("gpu"))
        if None in commands:
            text = f"{reason}; no experiment of ours has that case"
            return Judgement(NOT_MEASURED, NONE, text, needs="a case")
        return Judgement(NOT_MEASURED, NONE, reason, needs="a run", command=commands["laptop"])

    def _planned(
        self, claim: Claim, system: str, at: Mapping, device_kind: str | None
    ) -> tuple[str | None, str | None]:
        """The tier whose grids have the system at the shape, or a stand-in, and its command."""
        writeup = self.claims_file.writeups[claim.writeup]
        stand_ins = [{}] + [s.given() for s in writeup.stand_ins]
        for tier in ("gpu",) if device_kind == "cuda" else ("laptop", "gpu"):
            rows = _planned_by_system(tier)
            for stand_in in stand_ins:
                found = self._matching(rows, claim, system, {**at, **stand_in})
                if found:
                    row = found[0]
                    command = f"python -m experiments run {row['experiment']} --tier {tier}"
                    only = (f" --only {name}={row[name]}" for name in ("variant", "seq_len"))
                    return tier, command + "".join(only)
        return None, None

    def _stand_in(self, claim: Claim, rows: Iterable[Mapping], shape: Mapping) -> str:
        """What differs from the published setting, in words; "" where nothing does."""
        rows = list(rows)
        if not rows:
            return ""
        card = self.claims_file.cards[self.claims_file.writeups[claim.writeup].card].device
        words = [shape_words(shape)] if shape else []
        row = rows[0]
        if card not in row["device"]:
            words.append("on a CPU" if row["device_kind"] == "cpu" else f"on {row['device']}")
        return ", ".join(words)

    def floor_ms(self, claim: Claim, system: str, at: Mapping, card: str) -> float:
        """Least time in ms for the exact forward work of the system, at HEADROOM over rated speed.

        4 D FLOPs per query-key pair, 2 E^2 per token and projection; q, k and v read and the
        output written once (a wrapper reads x and its weights).
        """
        shape, spec = self.shape(claim, at, system), self.claims_file.systems[system]
        tokens, width = shape["batch"] * shape["seq_len"], shape["heads"] * shape["head_dim"]
        flops = 2 * tokens * width**2 * spec.projections
        flops += 4 * shape["head_dim"] * shape["batch"] * self.pairs(claim, system, at)
        moved = self.tensor_bytes(claim, at) * (2 if spec.projections else 4)
        moved += spec.projections * width**2 * ITEM_BYTES[shape["dtype"]]
        device = self.claims_file.cards[card]
        seconds = max(flops / device.flops[shape["dtype"]], moved / device.bytes_per_s)
        return 1000 * seconds / HEADROOM

    def tensor_bytes(self, claim: Claim, at: Mapping) -> int:
        """Bytes of one (B, N, H, D) tensor at the shape."""
        shape = self.shape(claim, at)
        elements = math.prod(shape[k] for k in ("batch", "seq_len", "heads", "head_dim"))
        return elements * ITEM_BYTES[shape["dtype"]]

    def score_bytes(self, claim: Claim, system: str, at: Mapping) -> int:
        """Bytes of the whole score matrices that its published code has in memory at once."""
        known = self.claims_file.systems[system]
        if not self.is_published and known.variant != known.replica:
            return 0
        shape = self.shape(claim, at)
        of_one = (
            shape["batch"] * shape["heads"] * shape["seq_len"] ** 2 * ITEM_BYTES[shape["dtype"]]
        )
        return known.scores * of_one

    def pairs(self, claim: Claim, system: str, at: Mapping) -> int:
        """Query-key pairs of one sequence over all heads; 0 where the pattern is not stated."""
        shape, spec = self.shape(claim, at, system), self.claims_file.systems[system]
        n, heads, is_causal = shape["seq_len"], shape["heads"], shape["is_causal"]
        if spec.pattern == "blocks":
            return heads * block_pairs(n, shape["block_size"], shape["sparsity"], is_causal)
        branches = self.claims_file.writeups[claim.writeup].branches.get(n)
        if spec.pattern == "dense":
            branches = [[n, 1]]
        if spec.pattern is None or branches is None:
            return 0
        w, r = zip(*branches, strict=True)
        return DilatedBranches(w, r).pairs(n, heads, is_causal)

    def missing(self, claim: Claim, needs: Mapping, have: Mapping) -> list[str]:
        """What has no timed record, in words: one entry per system, with its shapes."""
        missing: dict[str, list[str]] = {}
        for label, (system, at) in needs.items():
            if label in have:
                continue
            shapes = missing.setdefault(system, [])
            fixed = self.shape(claim, at, system)
            shape = shape_words({k: fixed[k] for k in ("dtype", "sparsity") if k in fixed} | at)
            rows = self.rows(claim, system, at)
            statuses = sorted({row["status"] for row in rows} - {"ok"})
            shapes.append(f"{shape} ({comma_separated(statuses)})" if statuses else shape)
        found = (
            f"{self.variant(system) or f'a replica of {system}'} at {' / '.join(shapes)}"
            for system, shapes in missing.items()
        )
        return list(dict.fromkeys(found))

    def _rank(self, claim: Claim, row: Mapping) -> tuple:
        card = getattr(claim.predicate, "card", None)
        on_card = card is not None and self.claims_file.cards[card].device in row["device"]
        return (not on_card, row["device_kind"] != "cuda", row["machine"])


def _of_newest_code(rows: Iterable[dict]) -> list[dict]:
    """Of each system the rows of the code that measured it last; what it superseded is history.

    Trainings with it are of other code, and for themselves.
    """
    rows = [(row, (row["variant"], _is_training(row))) for row in rows]
    newest: dict[tuple[str, bool], tuple[str, str]] = {}
    for row, of in rows:
        told = (str(row["started_at"]), row["code_digest"])
        newest[of] = max(told, newest.get(of, told))
    return [row for row, of in rows if row["code_digest"] == newest[of][1]]


def _is_training(row: Mapping) -> bool:
    """Whether models were trained, by code that is more than that of their attention."""
    return isinstance(row.get("recipe"), str)


# By (experiment, variant), then by length.
_Rows = Mapping[tuple[str, str], Mapping[int, list[dict]]]


@cache
def _planned_by_system(tier: str) -> _Rows:
    return _by_system(planned(tier))


def _by_system(rows: Iterable[Mapping]) -> _Rows:
    found: dict[tuple[str, str], dict[int, list[dict]]] = {}
    for row in rows:
        of_system = found.setdefault((row["experiment"], row["variant"]), {})
        of_system.setdefault(row["seq_len"], []).append(row)
    return found


def _of_length(rows: Mapping[int, list[dict]], seq_len: int | None) -> Iterable[dict]:
    """The rows of one system at a length; at every one, for None."""
    if seq_len is None:
        return itertools.chain.from_iterable(rows.values())
    return rows.get(seq_len, ())
