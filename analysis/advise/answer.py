"""The ranking of measured and interpolated systems, and those that are left out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pandas as pd

from analysis.advise.interpolation import Estimate, Point, Series, series
from analysis.advise.question import (
    Question,
    Refused,
    machine_words,
    nearest_settings,
    resolve,
    rows_of_machine,
)
from analysis.claims.criteria import judged_ratio
from analysis.records import systems
from analysis.records.units import ITEM_BYTES
from analysis.rendering.text import interval, number
from analysis.selection import published
from analysis.statistics.intervals import Interval, speedup
from models.registry import VARIANTS

GB = 1e9


@dataclass(frozen=True)
class Option:
    """A system that does the job. Options of equal `computes` give the same result.

    density: smallest and largest share of dense attention's pairs at the lengths it rests on.
    time: ms. memory: bytes, the peak and the inputs; None where it was not measured.
    basis: "measured" or "interpolated", from records at `lengths`, whose paths are `records`.
    point: of a measured one, what it is of. kernel: what ran, by the records. also: other systems
    that ran the same, whose records say no better.
    ties: whether its time (memory, where that ranks) cannot be told from the first one's.
    """

    system: str
    name: str
    computes: str
    density: tuple[float, float]
    time: Interval
    memory: Interval | None
    basis: str
    lengths: tuple[int, ...]
    records: tuple[str, ...]
    commands: tuple[str, ...]
    point: Point | None = field(repr=False, compare=False)
    kernel: str | None = None
    also: tuple[str, ...] = ()
    ties: bool = False

    @property
    def systems(self) -> tuple[str, ...]:
        """Every system that ran this kernel."""
        return (self.system, *self.also)

    def ranked_by(self, by: str) -> Interval:
        """The quantity that the ranking is by; infinite where it is not known."""
        known = self.time if by == "time" else self.memory
        return known or Interval.without_spread(math.inf)


@dataclass(frozen=True)
class LeftOut:
    """A system that is not ranked, and why.

    kind: "range", "memory", "status", or "function" of one that is not what it is named after.
    reason: in words.
    """

    system: str
    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """The answer: `ranked` best first, over all functions; empty if no system fits.

    question: as asked, with the type and causality that the answer is for. settled: those of its
    fields that were not asked for. machine: its id; device: in words. memory_bytes: the limit.
    """

    question: Question
    settled: tuple[str, ...]
    machine: str
    device: str
    memory_bytes: float
    ranked: tuple[Option, ...]
    left_out: tuple[LeftOut, ...]

    def best(self, computes: str | None = None) -> Option | None:
        """The best that computes `computes` ("dense", ...), or of all; None where there is none."""
        of_kind = (o for o in self.ranked if computes in (None, o.computes))
        return next(of_kind, None)

    @property
    def kinds(self) -> list[str]:
        """What the ranked ones compute: dense attention first, then in ranked order."""
        found = dict.fromkeys(option.computes for option in self.ranked)
        return sorted(found, key=lambda computes: computes != "dense")


def advise(frame: pd.DataFrame, question: Question) -> Advice:
    """Answer `question` from the records in `frame` (see `analysis.records.load`).

    Raises Refused, naming what was measured, if the machine, the setting or the length was not;
    a length between measured ones is interpolated by `analysis.statistics.scaling`.
    """
    rows = rows_of_machine(frame, question.device)
    if rows.empty:
        raise Refused(f"device {question.device!r}: no record on one device")
    settled, own = resolve(rows, question)
    first = own.iloc[0]
    limit = question.memory_bytes or float(first["device_memory_bytes"])
    options, left = [], []
    found: dict[str, list[tuple[Series, Estimate | str]]] = {}
    for one in series(own, question.seq_len):
        if VARIANTS[one.variant].pattern_class == "HeadPartition":
            reason = "each head takes part in one branch only: not the attention it is named after"
            left.append(LeftOut(one.system, published.name(one.system), "function", reason))
            continue
        found.setdefault(one.system, []).append((one, one.at(question.seq_len)))
    if not any(isinstance(at, Estimate) for pairs in found.values() for _, at in pairs):
        raise Refused(_out_of_range(rows, own, settled))
    for system in systems.ordered(found):
        answered = [pair for pair in found[system] if isinstance(pair[1], Estimate)]
        # A pattern that was run at that length is preferred to one that a rule gives there.
        measured = [pair for pair in answered if len(pair[1].points) == 1]
        for one, estimate in measured or answered:
            option = _option(one, estimate, settled)
            reason = _too_large(option, limit, asked=question.memory_bytes is not None)
            if reason is None:
                options.append(option)
            else:
                left.append(LeftOut(system, option.name, "memory", reason))
        if not answered:
            one, reason = max(found[system], key=lambda pair: len(pair[0].points))
            here = any(p.seq_len == question.seq_len for p in one.points)
            left.append(LeftOut(system, published.name(system), _kind(here), reason))
    fields = ("dtype", "is_causal")
    return Advice(
        settled,
        tuple(f for f in fields if getattr(question, f) is None),
        first["machine"],
        machine_words(first),
        limit,
        _ranked(_one_per_kernel(options, question.by), question.by),
        tuple(dict.fromkeys(left)),
    )


def _kind(measured_here: bool) -> str:
    return "status" if measured_here else "range"


def _option(one: Series, estimate: Estimate, question: Question) -> Option:
    timed = [point.timed for point in estimate.points]
    densities = [float(d) for rows in timed for d in rows["realised_density"]]
    beside = [point for point in estimate.points if _encloses(estimate.points, point, question)]
    near = [float(d) for point in beside for d in point.timed["realised_density"]]
    near = near or densities
    memory, point = None, estimate.points[0] if len(estimate.points) == 1 else None
    if estimate.peak is not None:
        memory = estimate.peak.plus(input_bytes(question, one.variant))
    return Option(
        one.system,
        published.name(one.system),
        one.computes,
        (min(near), max(near)),
        estimate.time,
        memory,
        "measured" if point else "interpolated",
        tuple(point.seq_len for point in estimate.points),
        tuple(path for rows in timed for paths in rows["paths"] for path in paths),
        tuple(command for rows in timed for commands in rows["commands"] for command in commands),
        point,
        _kernel(timed, one.variant),
    )


def _kernel(timed: list[pd.DataFrame], variant: str) -> str | None:
    """The function and the backend that ran, where it was one at all lengths."""
    backends = {backend for rows in timed for backend in rows["backend"]}
    return f"{VARIANTS[variant].entry} {backends.pop()}" if len(backends) == 1 else None


def _one_per_kernel(options: list[Option], by: str) -> list[Option]:
    """Of systems that ran the same kernel for the same function, the one with the best record."""
    found: dict[object, list[Option]] = {}
    for place, option in enumerate(options):
        key = (option.computes, option.kernel) if option.kernel else place
        found.setdefault(key, []).append(option)
    merged = []
    for same in found.values():
        # A measured one before one that was interpolated.
        same.sort(key=lambda o: (o.basis != "measured", o.ranked_by(by).value, o.system))
        merged.append(replace(same[0], also=tuple(other.system for other in same[1:])))
    return merged


def _encloses(points: tuple[Point, ...], point: Point, question: Question) -> bool:
    """Whether it is the next measured length below or above the asked one."""
    lengths = [p.seq_len for p in points]
    below = max((n for n in lengths if n <= question.seq_len), default=None)
    above = min((n for n in lengths if n >= question.seq_len), default=None)
    return point.seq_len in (below, above)


def input_bytes(question: Question, variant: str) -> int:
    """Bytes of a pass's inputs: q, k and v, or a module's x and its four projections.

    In training the output's gradient too. A streamed pass holds no input besides its peak.
    """
    if variant in VARIANTS and VARIANTS[variant].is_streamed:
        return 0
    width = question.heads * question.head_dim
    tokens = question.batch * question.seq_len * width
    training = tokens if question.pass_ == "forward_backward" else 0
    multihead = variant in VARIANTS and VARIANTS[variant].multihead
    given = tokens + 4 * width**2 if multihead else 3 * tokens
    return (given + training) * ITEM_BYTES[question.dtype]


def _too_large(option: Option, limit: float, *, asked: bool) -> str | None:
    """Why an option does not fit `limit` bytes with its whole interval; None where it does."""
    if option.memory is None:
        return "its memory was not measured here" if asked else None
    need = option.memory
    if need.high <= limit:
        return None
    text = number(need.value / GB)
    if number(need.low) != number(need.high):
        text = interval(need.value / GB, need.low / GB, need.high / GB)
    verb = "needs" if need.low > limit else "may need more:"
    return f"{verb} {text} GB of {number(limit / GB)} GB"


def _ranked(options: list[Option], by: str) -> tuple[Option, ...]:
    if not options:
        return ()
    options = sorted(options, key=lambda o: (o.ranked_by(by).value, o.system, o.computes))
    first, *others = options
    return (first, *(replace(one, ties=gain_of(first, one, by) == 1) for one in others))


def gain_of(a: Option, b: Option, by: str) -> float:
    """How many times better `a` is than `b`; 1 where they cannot be told apart.

    The ratio of measured times is formed within each round that both have.
    """
    if by == "time" and a.point and b.point:
        sides = [{one.at.anywhere for one in option.point.samples} for option in (a, b)]
        if sides[0] & sides[1]:
            samples = (option.point.samples for option in (b, a))
            gain = judged_ratio(speedup(*samples, a.point.spread))
            return 1.0 if 1.0 in gain else gain.value
    return _gain_apart(a.ranked_by(by), b.ranked_by(by))


def _gain_apart(a: Interval, b: Interval) -> float:
    """Of two values that were measured apart, the less the better; NaN bounds: 1."""
    if not all(math.isfinite(i.value) and i.value > 0 for i in (a, b)):
        return 1.0
    halves = [math.log(i.high / i.low) / 2 for i in (a, b) if i.low > 0]
    half = math.hypot(*halves) if len(halves) == 2 else math.nan
    gain = math.log(b.value / a.value)
    return math.exp(gain) if abs(gain) > half else 1.0


def _out_of_range(rows: pd.DataFrame, own: pd.DataFrame, question: Question) -> str:
    timed = sorted(int(n) for n in set(own[own["status"] == "ok"]["seq_len"]))
    lines = [f"not measured: {question.words()}"]
    if timed:
        nearest = min(timed, key=lambda n: abs(math.log(n / question.seq_len)))
        if timed[0] < question.seq_len < timed[-1]:
            why = "no system was timed at three lengths around it"
        else:
            why = "nothing is extrapolated"
        lines.append(
            f"measured there from {timed[0]:,} to {timed[-1]:,} tokens, nearest {nearest:,}; {why}"
        )
    lost = own[(own["status"] != "ok") & (own["seq_len"] == question.seq_len)]
    lines += [f"{row['system']}: {row['status']}" for _, row in lost.iterrows()]
    lines.append("the nearest settings that were:")
    lines += [f"  {text}" for text in nearest_settings(rows, question)]
    return "\n".join(lines)
