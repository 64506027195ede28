"""What the write-ups say in figures and held fixed: `paper/claims.yaml`, seen by system."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from analysis import claims
from analysis.records import systems
from experiments import grid
from models.registry import VARIANTS

_ROOT = Path(__file__).resolve().parents[2]
CLAIMS = _ROOT / "paper" / "claims.yaml"
_LAYOUTS = _ROOT.glob("analysis/experiments/*/layout.yaml")
DENSE = "dense"
CARD = "GTX 1080"
Pattern = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How an experiment is set beside its write-up; one without a write-up has no shapes.

    base: the system that speed-ups are over. shapes: (batch, seq_len) in the write-up's order.
    ids: quantity -> id of the claim that holds its figure, without the write-up's name.
    """

    base: str
    shapes: tuple[tuple[int, int], ...] = ()
    ids: Mapping[str, str] = field(default_factory=dict)


def _layouts() -> dict[str, Layout]:
    found = {path.parent.name: yaml.safe_load(path.read_text()) for path in _LAYOUTS}
    return {
        name: Layout(said["base"], tuple(map(tuple, said.get("shapes", ()))), said.get("ids", {}))
        for name, said in sorted(found.items(), key=lambda item: item[1]["place"])
    }


LAYOUTS: Mapping[str, Layout] = _layouts()
EXPERIMENTS = tuple(LAYOUTS)


def base(experiment: str) -> str:
    """The system that the experiment's speed-ups are over."""
    return LAYOUTS[experiment].base


def shapes(experiment: str) -> tuple[tuple[int, int], ...]:
    """(batch, seq_len) of the published results, in the order of the write-up."""
    return LAYOUTS[experiment].shapes


def one_batch(experiment: str) -> list[tuple[int, int]]:
    """The published shapes, of a length with several batches only the first."""
    first = {seq_len: batch for batch, seq_len in reversed(shapes(experiment))}
    return [shape for shape in shapes(experiment) if first[shape[1]] == shape[0]]


@dataclass(frozen=True)
class Setting:
    """What a write-up held fixed.

    patterns: seq_len -> (segment lengths, dilation rates). blocks: (builder, block size) of its
    block masks, or None.
    """

    dtype: str
    is_causal: bool
    heads: int
    head_dim: int
    patterns: Mapping[int, Pattern]
    blocks: tuple[str, int] | None = None

    def pattern(self, seq_len: int) -> Pattern | None:
        """The branches at a length, published or not.

        Where every published pattern is that of the longest length with segments of at most half
        the sequence, so is that of another length. Otherwise None: there is no rule to follow.
        """
        if seq_len in self.patterns or not self.patterns:
            return self.patterns.get(seq_len)
        halves = all(self._at_most_half(n) == found for n, found in self.patterns.items())
        return self._at_most_half(seq_len) if halves else None

    def _at_most_half(self, seq_len: int) -> Pattern:
        lengths, rates = self.patterns[max(self.patterns)]
        return tuple(min(w, seq_len // 2) for w in lengths), rates


@cache
def setting(experiment: str) -> Setting:
    """The conditions of the write-up `experiment`; without one, the grid's most valuable case."""
    writeup = _claims_file().writeups.get(experiment)
    if writeup is None:
        case = grid.load(experiment).tiers["gpu"].cases[0]
        return Setting(case.dtype, case.is_causal, case.heads, case.head_dim, {})
    fixed = writeup.conditions
    patterns = {
        int(seq_len): (tuple(w for w, _ in pairs), tuple(r for _, r in pairs))
        for seq_len, pairs in writeup.branches.items()
    }
    blocks = None if fixed.pattern is None else (fixed.pattern, fixed.block_size)
    return Setting(fixed.dtype, fixed.is_causal, fixed.heads, fixed.head_dim, patterns, blocks)


def printed(experiment: str, system: str, batch: int, seq_len: int, quantity: str) -> str | None:
    """What stands in the write-up, with its decimals; None if nothing does.

    Units: ms, MiB, tokens or sequences a second. Where no `speedup` was printed, the ratio of
    the published times stands in.
    """
    claim = _claim(experiment, system, batch, seq_len, quantity)
    if claim is None:
        value = figure(experiment, system, batch, seq_len, quantity)
        return None if value is None else f"{value:.2f}"
    if isinstance(claim.published, str):
        return claim.published
    decimals = -math.floor(math.log10(claim.predicate.resolution or 1))
    return f"{claim.published:,.{max(decimals, 0)}f}"


def figure(experiment: str, system: str, batch: int, seq_len: int, quantity: str) -> float | None:
    """The number published for a system of ours, or for one without records; None without one."""
    claim = _claim(experiment, system, batch, seq_len, quantity)
    if claim is not None:
        return None if isinstance(claim.published, str) else float(claim.published)
    if quantity == "speedup" and system != base(experiment):
        times = [
            figure(experiment, one, batch, seq_len, "time") for one in (base(experiment), system)
        ]
        return times[0] / times[1] if all(times) else None
    return None


def stated(claim_id: str) -> float | None:
    """The number published under an id of the claims file; None where there is none."""
    claim = _claims_file().claims.get(claim_id)
    if claim is None or claim.published is None or isinstance(claim.published, str):
        return None
    return float(claim.published)


def growth(experiment: str, system: str, quantity: str) -> str | None:
    """How the write-up says that "time" or "memory" grows, in short; None if it does not.

    Words first, then the power that its own figures follow, of the first batch that it has.
    """
    known, claims_file = _systems(experiment).get(system), _claims_file()
    said: dict[str, str] = {}
    for claim in claims_file.claims.values():
        asked = claim.predicate
        if claim.writeup != experiment or claim.kind != "growth":
            continue
        if (asked.system, asked.quantity) != (known, quantity):
            continue
        derived = asked.derived(claims_file)
        if asked.at_most or (asked.at_least and asked.at_least > 1):
            said.setdefault("bound", f"O({_power(asked.at_most or asked.at_least)})")
        elif asked.below:
            said.setdefault("below", f"below {_power(asked.below)}")
        elif derived is not None:
            said.setdefault("figures", f"figures n^{derived:.2f}")
    return next((said[key] for key in ("bound", "below", "figures") if key in said), None)


def _power(exponent: float) -> str:
    return "n" if exponent == 1 else f"n^{exponent:g}"


def name(system: str) -> str:
    """The published name of a system of ours, or of one that has no records."""
    variant, sparsity = systems.parts(system)
    if variant not in VARIANTS:
        known = _claims_file().systems.get(system)
        return known.name if known else system
    own = VARIANTS[variant].published_name
    count, simulated = systems.ranks(system)
    more = [] if sparsity is None else [f"{100 * sparsity:.6g} %"]
    more += [f"{count}{' simulated' if simulated else ''} ranks"] if count > 1 else []
    if not more:
        return own
    inside = ", ".join(more)
    return f"{own[:-1]}, {inside})" if own.endswith(")") else f"{own} ({inside})"


def without_variant(experiment: str) -> list[str]:
    """Keys of the systems with published times that no variant stands for yet."""
    return [
        key
        for key, system in _claims_file().systems.items()
        if system.variant is None
        and any(figure(experiment, key, *shape, "time") is not None for shape in shapes(experiment))
    ]


def _claim(experiment: str, system: str, batch: int, seq_len: int, quantity: str):
    known, ids = _systems(experiment).get(system), LAYOUTS[experiment].ids
    if known is None or quantity not in ids:
        return None
    claim_id = ids[quantity].format(system=known, batch=batch, seq_len=seq_len)
    return _claims_file().claims.get(f"{experiment}.{claim_id}")


@cache
def _claims_file() -> claims.ClaimsFile:
    return claims.load(CLAIMS)


@cache
def _systems(experiment: str) -> dict[str, str]:
    """Our system, or the key of one without records -> its key in the claims file."""
    return {
        systems.key(system.variant, system.sparsity) if system.variant else key: key
        for key, system in _claims_file().systems.items()
        if system.experiment in (None, experiment)
    }
