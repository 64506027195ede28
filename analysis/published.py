"""What the write-ups say in figures and held fixed: `paper/claims.yaml`, seen by variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from analysis import claims
from models.registry import VARIANTS

CLAIMS = Path(__file__).resolve().parent.parent / "paper" / "claims.yaml"
BASE = "dilated-gather"  # the variant published as DilatedAttention, base of every speed-up
DENSE = "dense"
CARD = "GTX 1080"
Pattern = tuple[tuple[int, ...], tuple[int, ...]]

# Quantity -> id of the claim that holds the published figure, without the write-up's name.
_LOG = "time.{system}.b{batch}.n{seq_len}"
_IDS = {
    "comprehensive": {
        "time": _LOG,
        "std": "summary.std.{system}.b{batch}.n{seq_len}",
        "throughput": "summary.throughput.{system}.b{batch}.n{seq_len}",
        "memory": "summary.memory.{system}.b{batch}.n{seq_len}",
        "speedup": "speedup.{system}.b{batch}.n{seq_len}",
    },
    "dilated": {
        "time": _LOG,
        "std": "std.{system}.b{batch}.n{seq_len}",
        "throughput": "throughput.{system}.b{batch}.n{seq_len}",
        "memory": "memory.{system}.b{batch}.n{seq_len}",
        "speedup": "speedup.{system}.b{batch}.n{seq_len}",
        "vram": "vram.{system}.n{seq_len}",
        "gpu_time": "gpu.time",
        "cpu_time": "cpu.time",
        "gpu_over_cpu": "cpu.speedup",
        "gpu_throughput": "gpu.throughput",
        "cpu_throughput": "cpu.throughput",
    },
}
SHAPES = {  # (batch, seq_len) in the order of the write-up
    "comprehensive": tuple((batch, n) for batch in (1, 2, 4) for n in (2048, 4096, 8192)),
    "dilated": ((1, 2048), (2, 4096), (4, 8192)),
}
EXPERIMENTS = tuple(SHAPES)


@dataclass(frozen=True)
class Setting:
    """What a write-up held fixed. `patterns`: seq_len -> (segment lengths, dilation rates)."""

    dtype: str
    is_causal: bool
    heads: int
    head_dim: int
    patterns: Mapping[int, Pattern]

    def pattern(self, seq_len: int) -> Pattern | None:
        """The pattern at a length, published or not.

        Where every published pattern is that of the longest length with segments of at most half
        the sequence, so is that of another length. Otherwise None: there is no rule to follow.
        """
        if seq_len in self.patterns:
            return self.patterns[seq_len]
        halves = all(self._at_most_half(n) == found for n, found in self.patterns.items())
        return self._at_most_half(seq_len) if halves else None

    def _at_most_half(self, seq_len: int) -> Pattern:
        lengths, rates = self.patterns[max(self.patterns)]
        return tuple(min(w, seq_len // 2) for w in lengths), rates


@cache
def setting(experiment: str) -> Setting:
    """The conditions of the write-up `experiment`."""
    writeup = _book().writeups[experiment]
    fixed = writeup.conditions
    patterns = {
        int(seq_len): (tuple(w for w, _ in pairs), tuple(r for _, r in pairs))
        for seq_len, pairs in writeup.branches.items()
    }
    return Setting(fixed.dtype, fixed.is_causal, fixed.heads, fixed.head_dim, patterns)


def figure(experiment: str, variant: str, batch: int, seq_len: int, quantity: str) -> float | None:
    """The figure published for `variant`, or for a system without one; None if there is none.

    Units: ms, MiB, tokens or sequences a second. Where no `speedup` over DilatedAttention was
    printed, the ratio of the published times stands in.
    """
    keys = _systems()
    if variant not in keys:
        return None
    known = _book().claims
    name = _IDS[experiment][quantity].format(system=keys[variant], batch=batch, seq_len=seq_len)
    claim = known.get(f"{experiment}.{name}")
    if claim is not None:
        return float(claim.published)
    if quantity == "speedup" and variant != BASE:
        base = figure(experiment, BASE, batch, seq_len, "time")
        own = figure(experiment, variant, batch, seq_len, "time")
        return base / own if base and own else None
    return None


def name(variant: str) -> str:
    """The published name of a variant, or of a system that has none."""
    if variant in VARIANTS:
        return VARIANTS[variant].published_name
    system = _book().systems.get(variant)
    return system.name if system else variant


def without_variant(experiment: str) -> list[str]:
    """Keys of the systems with published times that no variant stands for yet."""
    return [
        key
        for key, system in _book().systems.items()
        if system.variant is None
        and figure(experiment, key, *SHAPES[experiment][0], "time") is not None
    ]


@cache
def _book() -> claims.Book:
    return claims.load(CLAIMS)


@cache
def _systems() -> dict[str, str]:
    """Variant, or key of a system without one -> key of the system."""
    systems = _book().systems
    return {system.variant or key: key for key, system in systems.items()}
