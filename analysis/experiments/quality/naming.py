"""What the systems of `quality` are called, and how they look: an attention and its pattern.

The key of a system (`analysis.records.systems`) is its variant and sparsity. Here systems differ in
their branches, in the heads' offsets and in who builds the blocks, too. Segments are shares of the
length, so that a system is the same one at another length; blocks are not told apart by size.

All functions take a row of the frame, or the cells of a case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.colors import to_hex, to_rgb

from analysis.records import systems
from analysis.rendering.style import Look, look
from experiments.case import PATTERNS
from models.registry import VARIANTS

# Of systems with branches, whatever variant computes them.
BRANCHES, DETACHED = "branches", "detached"
# Label, colour and markers of each kind. The systems of a kind share its hue.
KINDS = {
    "dense": ("Dense", "#000000", "o"),
    BRANCHES: ("Dilated", "#0072B2", "^v<>dH8"),
    DETACHED: ("Detached", "#CC79A7", "hd"),
    "local_window": ("Local window", "#E69F00", "s"),
    "dilated": ("Dilated blocks", "#009E73", "D"),
    "global_local": ("Global + local", "#D55E00", "P"),
    "strided": ("Strided", "#882255", "X"),
    "random": ("Random", "#777777", "p"),
    "top_k": ("Top-k", "#5B3A9E", "*"),
}
# Branches that a name lists; of more it has the ends and how many they are.
_LISTED = 3


def takes(of: Mapping) -> str | None:
    """ "branches", "blocks", or None of dense attention."""
    return VARIANTS[of["variant"]].takes


def kind(of: Mapping) -> str:
    """Who builds its blocks; of LongNet's branches BRANCHES or, with gradients that leave out a
    part, DETACHED; else its variant."""
    if takes(of) == "blocks":
        return of["pattern"]
    variant = VARIANTS[of["variant"]]
    if variant.pattern_class == "DilatedBranches":
        return BRANCHES if variant.has_exact_gradients else DETACHED
    return variant.name


def slug(of: Mapping) -> str:
    """The system in keys of numbers: `dense`, `block-sparse-sdpa@90-top-k`.

    With branches: `dilated-sdpa-n16+4-r1+4` has segments of a 16th and of a 4th of the length;
    lengths that do not divide it are given as they are, `w100+400`.
    """
    if takes(of) == "blocks":
        return f"{systems.key(of['variant'], of['sparsity'])}-{of['pattern'].replace('_', '-')}"
    if takes(of) is None:
        return of["variant"]
    shares = _shares(of)
    lengths = f"n{_plus(shares)}" if shares else f"w{_plus(of['segment_lengths'])}"
    offset = "-block-offset" if _has_block_offset(of) else ""
    return f"{of['variant']}-{lengths}-r{_plus(of['dilation_rates'])}{offset}"


def label(of: Mapping) -> str:
    """The system in figures and tables: `Dilated n/16·n/4, r 1·4`, `Strided 90 %`."""
    known = KINDS.get(kind(of))
    name = known[0] if known else look(of["variant"]).label
    if takes(of) == "blocks":
        return f"{name} {100 * of['sparsity']:.4g} %"
    if takes(of) is None:
        return name
    return f"{name} {branches(of)}{', block offset' if _has_block_offset(of) else ''}"


def branches(of: Mapping, listed: int = _LISTED) -> str:
    """Segments, as shares of the length n where they divide it, and dilation rates."""
    shares = _shares(of)
    lengths = [_share(one) for one in shares] if shares else [*map(str, of["segment_lengths"])]
    rates = [*map(str, of["dilation_rates"])]
    if len(lengths) <= listed:
        return f"{'·'.join(lengths)}, r {'·'.join(rates)}"
    ends = (f"{each[0]} to {each[-1]}" for each in (lengths, rates))
    return f"{', r '.join(ends)} ({len(lengths)})"


def names(rows: Sequence[Mapping]) -> list[str]:
    """The label of each; those that share one say more of themselves."""
    found = [label(row) for row in rows]
    for more in (_all_branches, _backend, _blocks):
        said: dict[str, set[str]] = {}
        for name, row in zip(found, rows, strict=True):
            said.setdefault(name, set()).add(more(row))
        found = [
            f"{name}{more(row)}" if len(said[name]) > 1 else name
            for name, row in zip(found, rows, strict=True)
        ]
    return found


def how_computed(rows: Iterable[Mapping]) -> str:
    """A sentence on what computes the systems that are not dense; "" where there are none."""
    found = dict.fromkeys(row["variant"] for row in sorted(rows, key=order) if takes(row))
    said = "; ".join(VARIANTS[variant].summary for variant in found)
    return f" Steps are timed of what computes them here: {said}." if said else ""


def order(of: Mapping) -> tuple:
    """The place of a system among others: dense, branches, blocks; the least sparse first."""
    is_blocks = takes(of) == "blocks"
    return (
        ("dense", "branches", "blocks").index(takes(of) or "dense"),
        PATTERNS.index(of["pattern"]) if is_blocks else -1,
        [*VARIANTS].index(of["variant"]),
        of["sparsity"] if is_blocks else 0.0,
        _has_block_offset(of),
        () if is_blocks else tuple(of["dilation_rates"] or ()),
        slug(of),
    )


def first_of_kind(of: Mapping) -> tuple:
    """Ascending, which system stands for its kind: chosen by what it is, not by what it learnt.

    That with the most branches, as LongNet's schedule has, by its rule of offsets; of blocks the
    least sparse.
    """
    count = 0 if takes(of) != "branches" else len(of["segment_lengths"])
    return -count, _has_block_offset(of), order(of)


def looks(rows: Iterable[Mapping]) -> dict[str, Look]:
    """Slug -> look: a hue a kind, darker from one of its systems to the next, as in `order`."""
    of_kinds: dict[str, dict[str, Mapping]] = {}
    each = {slug(row): row for row in sorted(rows, key=order)}
    named = dict(zip(each, names([*each.values()]), strict=True))
    for key, row in each.items():
        of_kinds.setdefault(kind(row), {})[key] = row
    found = {}
    for name, own in of_kinds.items():
        for place, (key, row) in enumerate(own.items()):
            base = look(row["variant"])
            _, color, markers = KINDS.get(name, (base.label, base.color, (base.marker,)))
            shade = _shade(color, place, len(own))
            found[key] = Look(named[key], shade, markers[place % len(markers)])
    return found


def _shade(color: str, place: int, count: int) -> str:
    """From light to dark around the colour itself, which a kind of one system has."""
    at = 0.0 if count == 1 else 2 * place / (count - 1) - 1
    toward, share = (0.0, 0.5 * at) if at > 0 else (1.0, -0.3 * at)
    return to_hex([part + share * (toward - part) for part in to_rgb(color)])


def _has_block_offset(of: Mapping) -> bool:
    return takes(of) == "branches" and of["head_offset"] == "block"


def _shares(of: Mapping) -> list[int]:
    """What part of the length each segment is; none unless all divide it."""
    found = [divmod(of["seq_len"], length) for length in of["segment_lengths"]]
    return [times for times, _ in found] if all(t and not rest for t, rest in found) else []


def _share(part: int) -> str:
    return "n" if part == 1 else f"n/{part}"


def _plus(values: Iterable[int]) -> str:
    return "+".join(map(str, values))


def _all_branches(of: Mapping) -> str:
    if takes(of) != "branches" or len(of["segment_lengths"]) <= _LISTED:
        return ""
    return f": {branches(of, listed=math.inf)}"


def _backend(of: Mapping) -> str:
    return f", {of['variant']}" if takes(of) else ""


def _blocks(of: Mapping) -> str:
    return f", blocks of {of['block_size']:.0f}" if takes(of) == "blocks" else ""
