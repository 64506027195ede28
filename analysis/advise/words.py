"""An answer as text: a ranking, with a letter per function computed, and what was left out."""

from __future__ import annotations

import math

from analysis.advise.answer import GB, Advice, Option
from analysis.records.units import MIB
from analysis.rendering.text import DASH, interval, number
from analysis.statistics.intervals import Interval

_HEAD = ("", "system", "gives", "time, ms", "of first", "memory, MiB", "from")
_OPEN = {"dtype": "type", "is_causal": "causality"}


def in_words(answer: Advice) -> str:
    """Lines of at most some 110 characters, the last one ended."""
    marks = {computes: _letter(i) for i, computes in enumerate(answer.kinds)}
    lines = [
        f"On {answer.device}:",
        f"{answer.question.words()}, in {number(answer.memory_bytes / GB)} GB",
    ]
    if answer.settled:
        left = " and ".join(_OPEN[name] for name in answer.settled)
        lines.append(f"({left} not asked for: those of most measured systems)")
    lines.append("")
    if answer.ranked:
        lines += [verdict(answer), "", *_table(answer, marks), ""]
        lines += _legend(answer, marks)
    else:
        lines.append("Nothing that was measured here fits.")
    if answer.left_out:
        lines += ["", "Left out:"]
        lines += [f"  {one.system}: {one.reason}" for one in answer.left_out]
    return "\n".join(lines) + "\n"


def verdict(answer: Advice) -> str:
    """Which to take: of all, and of those that compute dense attention."""
    by = {"time": "Fastest", "memory": "Smallest"}[answer.question.by]
    first, dense = answer.ranked[0], answer.best("dense")
    text = f"{by}: {_with_ties(answer, first)}, which gives {_article(first.computes)}."
    if dense is None:
        return text + " Nothing that computes dense attention was measured here or fits."
    if dense is first:
        return text
    return f"{text}\n{by} that gives dense attention: {_with_ties(answer, dense)}."


def _with_ties(answer: Advice, option: Option) -> str:
    value = f"{_value(option.time, 1)} ms"
    if answer.question.by == "memory":
        value = f"{_value(option.memory, MIB)} MiB"
    text = f"{option.system} ({value}, {option.basis})"
    tied = [o.system for o in answer.ranked if o.ties and o.computes == option.computes]
    if option is answer.ranked[0] and tied:
        text += f"; not told apart from {', '.join(tied)}"
    return text


def _article(computes: str) -> str:
    return "dense attention" if computes == "dense" else f"another function: {computes}"


def _table(answer: Advice, marks: dict[str, str]) -> list[str]:
    by = answer.question.by
    first = answer.ranked[0].ranked_by(by).value
    rows = [_HEAD]
    for place, option in enumerate(answer.ranked, start=1):
        basis = option.basis
        if basis == "interpolated":
            basis += f", {len(option.lengths)} lengths {option.lengths[0]:,} to "
            basis += f"{option.lengths[-1]:,}"
        rows.append(
            (
                f"{'=' if option.ties else ''}{place}",
                " = ".join(option.systems),
                marks[option.computes],
                _value(option.time, 1),
                _times(option.ranked_by(by).value / first),
                _value(option.memory, MIB),
                basis,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def _legend(answer: Advice, marks: dict[str, str]) -> list[str]:
    lines = ["Systems of one letter give the same result; other letters, other functions:"]
    for computes, mark in marks.items():
        shares = [share for o in answer.ranked if o.computes == computes for share in o.density]
        low, high = (f"{100 * end(shares):.3g}" for end in (min, max))
        share = low if low == high else f"{low} to {high}"
        lines.append(f"  {mark}  {computes}: {share} % of dense attention's pairs")
    if any(option.also for option in answer.ranked):
        lines.append("Systems joined by = ran one kernel; the times are those of the first.")
    if any(option.ties for option in answer.ranked):
        lines.append("  =  its interval does not tell it from the first")
    if any(option.time.confidence > 0 for option in answer.ranked):
        lines.append("Brackets hold what measuring again finds in 95 % of cases.")
    if any(option.time.confidence == 0 for option in answer.ranked):
        lines.append("Without brackets: of one round; two within some 5 % are not told apart.")
    lines.append("Memory: peak and inputs.")
    return lines


def _times(ratio: float) -> str:
    """How many times the first one's; an en dash where that is not known."""
    return f"{number(ratio)}x" if math.isfinite(ratio) else DASH


def _value(value: Interval | None, unit: float) -> str:
    if value is None:
        return DASH
    if value.low == value.high:
        return number(round(value.value / unit))
    return interval(value.value / unit, *(bound / unit for bound in value.shown))


def _letter(index: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    rounds, place = divmod(index, 26)
    return chr(ord("A") + place) + (str(rounds) if rounds else "")
