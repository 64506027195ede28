"""What the write-ups print and hold fixed: `paper/claims.yaml`, looked up by system and shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from analysis import claims
from analysis.records import systems
from experiments import grid
from models.registry import VARIANTS

_ROOT = Path(__file__).resolve().parents[2]
CLAIMS = _ROOT / "paper" / "claims.yaml"
_FOLDERS = _ROOT.glob("analysis/experiments/*/contents.py")
DENSE = "dense"
CARD = "GTX 1080"
Pattern = tuple[tuple[int, ...], tuple[int, ...]]


class NotKnown(LookupError):
    """A look-up of what does not exist, as opposed to what was not printed; lists what does."""


@dataclass(frozen=True)
class Layout:
    """How an experiment is set beside its write-up: `layout.yaml` of its folder, if it has one.

    place: its position among the experiments, by default the last. speedup_base: the system that
    speed-ups are over. shapes: (batch, seq_len) in the write-up's order; none without a write-up.
    """

    place: float = math.inf
    speedup_base: str = DENSE
    shapes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "shapes", tuple(map(tuple, self.shapes)))


def _layouts() -> dict[str, Layout]:
    files = {path.parent.name: path.with_name("layout.yaml") for path in _FOLDERS}
    found = {
        name: Layout(**yaml.safe_load(file.read_text(encoding="utf-8")))
        if file.exists()
        else Layout()
        for name, file in sorted(files.items())
    }
    return dict(sorted(found.items(), key=lambda item: item[1].place))


LAYOUTS: Mapping[str, Layout] = _layouts()
EXPERIMENTS = tuple(LAYOUTS)


def speedup_base(experiment: str) -> str:
    """The system that the experiment's speed-ups are over."""
    return _layout(experiment).speedup_base


def shapes(experiment: str) -> tuple[tuple[int, int], ...]:
    """(batch, seq_len) of the published results, in the order of the write-up."""
    return _layout(experiment).shapes


def one_shape_per_length(experiment: str) -> list[tuple[int, int]]:
    """The published shapes; of a length with several batches only the first."""
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
        tiers = grid.load(experiment).tiers
        case = next(case for tier in reversed(grid.TIERS) for case in tiers[tier].cases)
        return Setting(case.dtype, case.is_causal, case.heads, case.head_dim, {})
    fixed = writeup.conditions
    patterns = {
        int(seq_len): (tuple(w for w, _ in pairs), tuple(r for _, r in pairs))
        for seq_len, pairs in writeup.branches.items()
    }
    blocks = None if fixed.pattern is None else (fixed.pattern, fixed.block_size)
    return Setting(fixed.dtype, fixed.is_causal, fixed.heads, fixed.head_dim, patterns, blocks)


def text(
    experiment: str, system: str, batch: int, seq_len: int | None, quantity: str
) -> str | None:
    """What the write-up prints, with its decimals; None if it prints nothing there.

    Units: ms, MiB, tokens (in `comprehensive` sequences) per second. Where no `speedup` was
    printed, the ratio of the published times stands in. seq_len: None of a quantity of no one
    length. Raises NotKnown for an experiment, system, shape or quantity that does not exist.
    """
    claim = _claim(experiment, system, batch, seq_len, quantity)
    if claim is None:
        ratio = value(experiment, system, batch, seq_len, quantity)
        return None if ratio is None else f"{ratio:.2f}"
    if isinstance(claim.published, str):
        return claim.published
    decimals = -math.floor(math.log10(claim.predicate.resolution or 1))
    return f"{claim.published:,.{max(decimals, 0)}f}"


def value(
    experiment: str, system: str, batch: int, seq_len: int | None, quantity: str
) -> float | None:
    """The number that `text` prints; None where that is nothing, or a word. Errors likewise."""
    claim = _claim(experiment, system, batch, seq_len, quantity)
    if claim is not None:
        return None if isinstance(claim.published, str) else float(claim.published)
    if quantity == "speedup" and system != speedup_base(experiment):
        times = [
            value(experiment, one, batch, seq_len, "time")
            for one in (speedup_base(experiment), system)
        ]
        return times[0] / times[1] if all(times) else None
    return None


def plot_value(writeup: str, plot: str, quantity: str) -> float:
    """A number read off a plot of a write-up. Raises NotKnown where none was."""
    figures = _claims_file().by_subject
    of_plots = {
        (about.writeup, about.plot, about.quantity): claim
        for about, claim in figures.items()
        if about.plot is not None
    }
    _require("figure of a plot", (writeup, plot, quantity), of_plots)
    return float(of_plots[writeup, plot, quantity].published)


def growth(experiment: str, system: str, quantity: str) -> str | None:
    """How the write-up says that "time" or "memory" grows, in short; None if it does not.

    Words first, then the power that its own figures follow, of the first batch that it has.
    Raises NotKnown as `text` does.
    """
    _require("quantity that grows", quantity, ("time", "memory"))
    known, claims_file = _published_system(experiment, system), _claims_file()
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
    """The published name of a system of ours, or of one that has no records.

    Raises NotKnown where it is neither.
    """
    variant, sparsity = systems.parts(system)
    if variant not in VARIANTS:
        _require("variant or published system", system, [*VARIANTS, *_claims_file().systems])
        return _claims_file().systems[system].name
    own = VARIANTS[variant].published_name
    count, simulated = systems.ranks(system)
    more = [] if sparsity is None else [f"{100 * sparsity:.6g} %"]
    more += [f"{count}{' simulated' if simulated else ''} ranks"] if count > 1 else []
    if not more:
        return own
    inside = ", ".join(more)
    return f"{own[:-1]}, {inside})" if own.endswith(")") else f"{own} ({inside})"


def _claim(
    experiment: str, system: str, batch: int, seq_len: int | None, quantity: str
) -> claims.Claim | None:
    """The claim whose figure is the quantity of the system at the shape.

    None where the write-up prints nothing: the quantity, the system and the shape exist.
    """
    _require("quantity", quantity, claims.QUANTITIES)
    known = _published_system(experiment, system)
    shape, known_shapes = (batch, seq_len), _known_shapes(experiment, quantity)
    _require(f"(batch, seq_len) of {quantity} in {experiment}", shape, known_shapes)
    return _claims_file().by_subject.get(claims.Subject(experiment, quantity, known, *shape))


def _published_system(experiment: str, system: str) -> str | None:
    """The claims file's key of a system; None of one that we measure and it does not name."""
    own = _published_systems(experiment)
    if system not in own and system not in _measured_systems():
        _require(f"system of {experiment}", system, [*own, *systems.of_experiment(experiment)])
    return own.get(system)


def _layout(experiment: str) -> Layout:
    _require("experiment", experiment, EXPERIMENTS)
    return LAYOUTS[experiment]


def _require(what: str, asked: object, known: Iterable) -> None:
    known = list(dict.fromkeys(known))
    if asked not in known:
        raise NotKnown(f"{what}: is {asked!r}, expected one of {', '.join(map(str, known))}")


@cache
def _claims_file() -> claims.ClaimsFile:
    return claims.load(CLAIMS)


@cache
def _known_shapes(experiment: str, quantity: str) -> tuple[tuple[int | None, int | None], ...]:
    """Those of the layout, and others that the write-up prints the quantity at."""
    printed = [
        (about.batch, about.seq_len)
        for about in _claims_file().by_subject
        if (about.writeup, about.quantity) == (experiment, quantity)
    ]
    return tuple(dict.fromkeys([*shapes(experiment), *printed]))


@cache
def _published_systems(experiment: str) -> dict[str, str]:
    """Our system -> the key in the claims file of the published one that it stands beside."""
    _layout(experiment)
    return {
        systems.key(system.beside or system.variant, system.sparsity): key
        for key, system in _claims_file().systems.items()
        if system.experiment in (None, experiment)
    }


@cache
def _measured_systems() -> frozenset[str]:
    """Every system that some grid measures, trial runs with it."""
    cases = (
        case
        for experiment in grid.names()
        for tier in grid.load(experiment).tiers.values()
        for case in tier.cases
    )
    return frozenset(systems.key(c.variant, c.sparsity, c.world_size, c.simulated) for c in cases)
