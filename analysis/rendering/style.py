"""What all figures share: one colour and marker a variant, labels beside lines, stable SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.records import systems
from analysis.rendering import figure_csv
from analysis.rendering.text import tokens, write
from experiments.atomic_write import atomic_write

STYLE = Path(__file__).with_name("style.mplstyle")
COLUMN, PAGE = 3.4, 7.0  # inches: a column, and two with the gutter
GREY = "#666666"
# Of labels beside lines: where they begin, of the axes' width, and what their threads leave free.
_LABELS_AT, _GAP_PT = 1.05, 3
# Of an SVG: the same figure gives the same bytes.
_UNDATED = {"Date": None, "Creator": None}


@dataclass(frozen=True)
class Look:
    """How a system is drawn in every figure. `hatch` tells bars apart without colour."""

    label: str
    color: str
    marker: str | tuple[int, int, int]
    hatch: str = ""

    @property
    def ink(self) -> tuple[float, float, float]:
        """The colour for text: dark enough to read."""
        return tuple(0.72 * part for part in to_rgb(self.color))


def _shades(variant: str, label: str, colors: str, markers: str) -> dict[str, Look]:
    """One hue from light to dark as the sparsity rises, a marker each."""
    return {
        f"{variant}@{percent}": Look(f"{label} {percent} %", color, marker)
        for percent, color, marker in zip((90, 95, 98), colors.split(), markers, strict=True)
    }


# Colours of Okabe & Ito (2008), told apart by all common kinds of colour vision; block-sparse
# systems have a hue each. Systems of one experiment differ in colour and in marker.
LOOKS = {
    "dense": Look("Dense", "#000000", "o"),
    "dilated-gather": Look("DilatedAttention", "#E69F00", "s", "//////"),
    "dilated-sdpa": Look("ImprovedDilated", "#0072B2", "^"),
    "dilated-masked": Look("Dilated, masked", "#117733", "D"),
    "dilated-detached": Look("Detached mixing", "#AA4499", "h"),
    "dilated-cudnn": Look("Dilated, cuDNN", "#009E73", "D"),
    "dilated-triton": Look("FusedDilated", "#882255", "X"),
    "dilated-gluon": Look("FusedDilated, Gluon", "#56B4E9", "*"),
    "dilated-streamed": Look("Streamed", "#D55E00", "D"),
    "dilated-streamed-mapped": Look("Streamed, files", "#009E73", "v"),
    "dilated-streamed-host": Look("Streamed, host", "#CC79A7", "P"),
    "head-partitioned": Look("Head-partitioned", "#009E73", "D", "......"),
    "multihead-dilated-gather": Look("Multihead", "#D55E00", "P", "\\\\\\\\\\\\"),
    "multihead-dilated-sdpa": Look("ImprovedMultihead", "#CC79A7", "v", "xxxxxx"),
    **_shades("block-sparse", "Block-sparse", "#5AAAE0 #1F6FB8 #0B2F66", "ps8"),
    **_shades("block-sparse-sdpa", "Gathered", "#F0A860 #C8691B #7A3505", "<v*"),
    **_shades("block-sparse-masked", "Masked", "#C9A0DC #8E4AA8 #4A1A5C", "<v*"),
    **_shades("block-sparse-flex", "Flex", "#7CC68D #2E8B57 #0E4D2B", "PXd"),
    "dense-flash": Look("SDPA flash", "#0072B2", "^"),
    "dense-efficient": Look("SDPA efficient", "#E69F00", "s"),
    "dense-cudnn": Look("SDPA cuDNN", "#009E73", "D"),
    "dense-math": Look("SDPA math", "#D55E00", "P"),
    "dense-eager": Look("Eager", "#777777", ">"),
    "dense-flex": Look("FlexAttention", "#CC79A7", "v"),
    "dense-flash-attn-2": Look("FlashAttention-2", "#56B4E9", "<"),
    "dense-flash-attn-4": Look("FlashAttention-4", "#5B3A9E", "h"),
    "ring-standard": Look("Ring, contiguous", "#009E73", "D"),
    "ring-distributed": Look("Ring, zigzag", "#D55E00", "s"),
    "ring-striped": Look("Ring, striped", "#0072B2", "^"),
    "ring-hilbert": Look("Ring, Hilbert", "#CC79A7", "v", "xxxxxx"),
    "ring-morton": Look("Ring, Morton", "#E69F00", "P", "//////"),
    "ring-snake": Look("Ring, snake", "#56B4E9", "<", "......"),
    **_shades("ring-block-sparse", "Ring, sparse", "#5AAAE0 #1F6FB8 #0B2F66", "phd"),
    **_shades("ring-block-sparse-dilated", "Dilated blocks", "#7CC68D #2E8B57 #0E4D2B", "PdX"),
    "distributed-dilated": Look("Dilated, all-gather", "#B8860B", ">"),
    "multihead-ring-dilated": Look("Ring, multihead", "#5B3A9E", "*"),
    "torch-context-parallel-allgather": Look("PyTorch CP", "#777777", "8"),
    "torch-context-parallel-alltoall": Look("PyTorch CP, rotate", "#999999", "H"),
    # More than there are filled markers with a name: stars of four, of six and of eight points.
    "ring-dilated": Look("Ring, dilated", "#999933", (8, 1, 0)),
    "ring-attention-pytorch": Look("lucidrains", "#555555", (4, 1, 0)),
    "ring-flash-attn-zigzag": Look("zhuzilin", "#AAAAAA", (6, 1, 0)),
    "published-head-partition": Look("Head loop", "#009E73", "D", "......"),
    "published-over-heads": Look("Over heads", "#D55E00", "P"),
    "published-signed-sum": Look("Signed sum", "#882255", "d"),
    **_shades("published-block-sums", "Block sums", "#7CC68D #2E8B57 #0E4D2B", "hH8"),
    "published-dense-ring": Look("Dense ring", "#5B3A9E", "p"),
}


def look(system: str) -> Look:
    """The look of a system; one that has none yet is grey, under its own name.

    Over ranks it is drawn as on one, and says how many.
    """
    known = systems.on_one_rank(system)
    one = LOOKS.get(known, Look(known, GREY, "h"))
    count, simulated = systems.ranks(system)
    if count == 1:
        return one
    return replace(one, label=f"{one.label}, p = {count}{' sim.' if simulated else ''}")


@contextmanager
def style() -> Iterator[None]:
    """The one style, whatever a notebook or a user's matplotlibrc says."""
    with matplotlib.style.context(["default", str(STYLE)]):
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` as SVG at `path`; beside it as PNG, for slides, and what it shows as CSV.

    Each is there whole or not at all. Equal figures give equal bytes.
    """
    with style():  # which says how many ticks there are
        _say_powers(figure)
    for form, metadata in (("svg", _UNDATED), ("png", {"Software": None})):
        with atomic_write(Path(path).with_suffix(f".{form}")) as partial, style():
            figure.savefig(partial, format=form, metadata=metadata)
    write(Path(path).with_suffix(".csv"), figure_csv.to_csv(figure))
    return Path(path)


def svg(figure: Figure) -> bytes:
    """The figure as SVG, to stand within a page. Equal figures give equal bytes."""
    out = BytesIO()
    with style():
        _say_powers(figure)
        figure.savefig(out, format="svg", metadata=_UNDATED)
    return out.getvalue()


def _say_powers(figure: Figure) -> None:
    """Ticks of logarithmic axes may be powers of ten, set as mathematics; no record names them."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if axis.get_scale() == "log":
                for label in axis.get_ticklabels(which="both"):
                    label.set_parse_math(True)


def length_axis(ax: Axes, lengths: Sequence[int]) -> None:
    """A logarithmic x axis with a tick at each measured length, labelled where there is room."""
    labelled = _with_room(lengths)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(list(lengths)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: tokens(n) if n in labelled else ""))
    ax.set_xlim(min(lengths) / 1.25, max(lengths) * 1.25)
    ax.set_xlabel("sequence length n (tokens, K = 1024)")


def _with_room(lengths: Sequence[int]) -> set[int]:
    """The powers of two, and those others whose label touches no other's on a logarithmic axis."""
    found = {n for n in lengths if n & (n - 1) == 0}
    room = 0.12 * math.log(max(lengths) / min(lengths))
    for n in sorted(set(lengths) - found):
        if all(abs(math.log(n / other)) >= room for other in found):
            found.add(n)
    return found


def ratio_axis(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis of ratios around 1, wide enough for `values` and their labels."""
    known = [v for v in values if v and math.isfinite(v)]
    low, high = min([*known, 0.8]) / 1.25, max([*known, 1.25]) * 1.25
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    steps = [10.0**e * m for e in range(-3, 5) for m in (1, 2, 5)]
    if high / low > 300:
        steps = [s for s in steps if f"{s:e}"[0] == "1"]
    ax.xaxis.set_major_locator(FixedLocator([s for s in steps if low <= s <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    ax.axvline(1, color="black", linewidth=0.7, zorder=3)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, in the same order, at least `gap` apart, inside [low, high].

    Positions that would touch share their mean; if all cannot fit they are spaced evenly.
    """
    if gap * (len(wanted) - 1) >= high - low:
        gap = (high - low) / max(len(wanted) - 1, 1)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    # Blocks of touching labels: [first wanted positions less their rank, ...].
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    levels = [_mean(block) for block in blocks for _ in block]
    top = high - gap * (len(wanted) - 1)
    placed = [min(max(level, low), top) + rank * gap for rank, level in enumerate(levels)]
    result = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        result[i] = placed[rank]
    return result


def label_lines(
    ax: Axes, ends: Sequence[tuple[float, float, str, object]], size: float = 7
) -> None:
    """Write (x, y, text, colour) labels right of `ax` at the height of their lines' ends.

    A text may hold mathematics, so nothing that a record says. Call it when the limits of the axes
    are final.
    """
    if not ends:
        return
    ax.autoscale_view()
    # In points, of which both axes have as many to the inch.
    place = ax.get_position()
    size_pt = 72 * np.array([place.width, place.height]) * ax.figure.get_size_inches()
    to_axes = ax.transData + ax.transAxes.inverted()
    found = [to_axes.transform((x, y)) for x, y, _, _ in ends]
    heights = spread([y for _, y in found], 1.25 * size / size_pt[1], 0.0, 1.0)
    threads = []
    for (_, _, text, color), at, end in zip(ends, heights, found, strict=True):
        words = {"color": color, "fontsize": size, "va": "center", "parse_math": True}
        ax.text(_LABELS_AT, at, text, transform=ax.transAxes, **words)
        start = np.array([_LABELS_AT, at]) * size_pt - (_GAP_PT, 0)
        way = end * size_pt - start
        stop = start + way * max(0.0, 1 - _GAP_PT / np.hypot(*way))
        threads.append((start / size_pt, stop / size_pt))
    # An annotation would find by bisection where its arrow ends.
    drawn = {"colors": [color for *_, color in ends], "linewidths": 0.4, "zorder": 3}
    ax.add_artist(LineCollection(threads, transform=ax.transAxes, clip_on=False, **drawn))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
