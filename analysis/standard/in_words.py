"""Cases and outcomes in words, the same in tables, figures and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from analysis.rendering.text import tokens
from analysis.selection import published

WORDS = {"oom": "out of memory", "timeout": "out of time"}
_PARTS: dict[str, Callable[[Mapping], str]] = {
    "type": lambda of: of["dtype"],
    "causal": lambda of: "causal" if of["is_causal"] else "",
    "not causal": lambda of: "" if of["is_causal"] else "not causal",
    "masking": lambda of: "causal" if of["is_causal"] else "not causal",
    "heads": lambda of: f"{of['heads']} × {of['head_dim']}",
    "heads of": lambda of: f"{of['heads']} heads of {of['head_dim']}",
    "length": lambda of: tokens(of["seq_len"]),
    "batch": lambda of: f"batch {of['batch']}",
    "pass": lambda of: "forward + backward" if _is_training(of) else "forward",
    "training": lambda of: "training" if _is_training(of) else "",
    "training pass": lambda of: "forward + backward" if _is_training(of) else "",
}


def outcome(row: Mapping) -> str:
    """Why a record has no time."""
    return WORDS.get(row["status"], row["status"])


def base(system: str) -> str:
    """What a speed-up is over, in a sentence: dense attention, or a published module by name."""
    return "dense attention" if system == published.DENSE else published.name(system)


def per_cent(share: float | None) -> str | None:
    """A share to a tenth of a per cent; None where there is none, or NaN."""
    return None if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def case(of: Mapping, *parts: str) -> str:
    """Type, causality and heads of a record or of the fields of a series; or the given `parts`.

    "causal", "not causal", "training" and "training pass" stand only where they apply; "masking" is
    one of the first two. "heads" is 8 × 64, "heads of" 8 heads of 64.
    """
    words = (_PARTS[part](of) for part in parts or ("type", "causal", "heads"))
    return ", ".join(word for word in words if word)


def _is_training(of: Mapping) -> bool:
    return of["training"] if "training" in of else of["pass"] == "forward_backward"
