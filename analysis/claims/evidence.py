"""The records, work and memory by which a predicate judges a claim."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas as pd

from analysis.claims.claim import Claim, ClaimsFile
from analysis.claims.schema import HEADROOM, Judgement
from analysis.claims.wording import comma_separated, shape_words
from analysis.records.units import ITEM_BYTES
from experiments.case import PATTERN_FIELDS, RANK_FIELDS
from experiments.cost.pairs import block_pairs
from models.patterns.branches import DilatedBranches
from models.registry import VARIANTS

_BRANCHES = ("segment_lengths", "dilation_rates")


class Evidence:
    """A claims file and the frame of records it is judged over."""

    def __init__(self, claims_file: ClaimsFile, frame: pd.DataFrame):
        self.claims_file = claims_file
        self._rows: dict[tuple, list[dict]] = {}
        for row in frame.to_dict("records"):
            self._rows.setdefault((row["experiment"], row["variant"]), []).append(row)

    def judge(self, claim: Claim) -> Judgement:
        return claim.predicate.judge(claim, self)

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
        writeup, variant = (
            self.claims_file.writeups[claim.writeup],
            self.claims_file.systems[system].variant,
        )
        known = VARIANTS[variant] if variant is not None else None
        takes = known.takes if known else None
        other = [] if takes == "blocks" else [*PATTERN_FIELDS["blocks"]]
        other += [] if known and known.shard_order else [*RANK_FIELDS, "min_world_size"]
        other += [k for k, v in at.items() if v is None]
        shape = {k: v for k, v in self.shape(claim, at, system).items() if k not in other}
        rates, least = shape.pop("dilation_rates", None), shape.pop("min_seq_len", 0)
        fewest = shape.pop("min_world_size", None)
        pairs = writeup.branches.get(shape.get("seq_len")) if rates is None else None
        branches = takes == "branches"
        found = []
        experiment = self.claims_file.experiment(claim.writeup, system)
        for row in self._rows.get((experiment, variant), ()):
            if any(row[k] != v for k, v in shape.items()) or row["kv_heads"] != row["heads"]:
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
        # Longest segments last: the last one is used where the write-up states no segments.
        return sorted(found, key=lambda r: (r["segment_lengths"] or (), r["seed"], r["path"]))

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
        """Decide on the best machine that has `at_least` (default: all) of the needed records.

        needs: label -> (system, shape). decide(rows by label, names of those missing). The
        write-up's stand-in shapes are tried where a ratio needs no particular card.
        """
        device = self.claims_file.cards[card].device if card else ""
        column = {"time": "median_ms", "memory": "peak_memory_bytes"}[quantity]
        stand_ins = [{}]
        if not card and not device_kind:
            stand_ins += [s.given() for s in self.claims_file.writeups[claim.writeup].stand_ins]
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
        else:
            return Judgement.without_records(self._missing(claim, needs, {}))
        full.sort(key=lambda rows: (-len(rows), *self._rank(claim, next(iter(rows.values())))))
        results = []
        for rows in full:
            found = decide(rows, self._missing(claim, needs, rows))
            # Systems were recorded but no pair of them: nothing was measured, so no evidence.
            results.append(replace(found, rows=tuple(rows.values()) if found.measured else ()))
        return _of_preferred_machine(results, stand_in)

    def on_machines(self, claim, system, at, decide: Callable[[list], Judgement]) -> Judgement:
        """Decide on all records of one system at a shape, whatever their status, by machine."""
        rows = sorted(self.rows(claim, system, at), key=lambda row: self._rank(claim, row))
        if not rows:
            return Judgement.without_records(self._missing(claim, {"system": (system, at)}, {}))
        groups = [list(g) for _, g in itertools.groupby(rows, key=lambda row: row["machine"])]
        return _of_preferred_machine([replace(decide(g), rows=tuple(g)) for g in groups], {})

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

    def _missing(self, claim: Claim, needs: Mapping, have: Mapping) -> list[str]:
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
        texts = []
        for system, shapes in missing.items():
            spec = self.claims_file.systems[system]
            if spec.variant is None:
                texts.append(f"no record of this system yet ({spec.name})")
            else:
                texts.append(f"{spec.variant} at {' / '.join(shapes)}")
        return texts

    def _rank(self, claim: Claim, row: Mapping) -> tuple:
        card = getattr(claim.predicate, "card", None)
        on_card = card is not None and self.claims_file.cards[card].device in row["device"]
        return (not on_card, row["device_kind"] != "cuda", row["machine"])


def _of_preferred_machine(results: list[Judgement], stand_in: Mapping) -> Judgement:
    """The first judgement; its reason names the machine and those that disagree."""
    first = results[0]
    if not first.rows:
        return first
    row = first.rows[0]
    reason = f"{first.reason}; on {row['machine']} ({row['device_kind']})"
    if stand_in:
        reason += f", at {shape_words(stand_in)}, since the published shape has no record"
    others = [r for r in results[1:] if r.rows and r.verdict != first.verdict]
    for other in others:
        reason += f"; {other.rows[0]['machine']} disagrees: {other.verdict} ({other.reason})"
    return replace(first, reason=reason, rows=first.rows + sum((o.rows for o in others), ()))
