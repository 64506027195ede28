"""Every record on one page that needs nothing else: data, style and script in one HTML file.

    python -m analysis.pages.results_page [--out build/results.html] [ROOT ...]

The page is `pages/results*.{html,css,js}`; this module fills in the data. Each record keeps its
place in columns, texts are listed once, and the case's file name, which paths and commands repeat,
is written as STEM there.
"""

from __future__ import annotations

import math
import sys
from pathlib import PurePosixPath

import pandas as pd
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline

from analysis.advise.interpolation import branches_in_words
from analysis.advise.question import machine_words
from analysis.command import command, parser
from analysis.pages.template import PAGES, style_of
from analysis.records import frame as records
from analysis.records import systems
from analysis.rendering import style
from analysis.rendering.escaping import policy, script_json
from analysis.rendering.text import title, write
from analysis.selection import published, rates, views
from analysis.standard import in_words
from experiments import grid

SCRIPTS = ("data", "text", "chart", "strip", "view")
# What tells one selection of the page from another; lines are drawn within. "heads" says their
# size and the key heads too.
SETTING = ["machine", "experiment", "pass", "dtype", "is_causal", "heads", "batch"]
TEXTS = (
    *("machine", "experiment", "pass", "dtype", "heads", "system", "line", "pattern", "status"),
    *("reason", "backend", "stem", "path", "command", "torch", "commit"),
)
SAMPLE_DIGITS, DIGITS = 6, 12
STEM = "\x7f"  # no letter of any text


def page(frame: pd.DataFrame) -> str:
    """The whole page as HTML; equal frames give equal text."""
    script = "\n" + "\n".join(
        (PAGES / f"results-{name}.js").read_text(encoding="utf-8") for name in SCRIPTS
    )
    told = script_json(data(frame))
    parts = {
        "<!-- policy -->": policy(script),
        "<!-- style -->": f"<style>\n{style_of('results')}</style>",
        "<!-- script -->": f"<script>{script}</script>",
        # Last: what a record says is no mark.
        "<!-- data -->": f'<script type="application/json" id="data">{told}</script>',
    }
    text = (PAGES / "results.html").read_text(encoding="utf-8")
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


def data(frame: pd.DataFrame) -> dict:
    """What the page knows: `columns` of equal length, `texts` that they point into, and names."""
    rows = with_lines(frame).assign(as_published=_as_published(frame))
    texts: dict[str, int] = {}
    columns: dict[str, list] = {}
    for row in rows.to_dict("records"):
        for name, value in _record(row).items():
            if name in TEXTS:
                value = None if value is None else texts.setdefault(value, len(texts))
            columns.setdefault(name, []).append(value)
    return {
        "columns": columns,
        "texts": list(texts),
        "in_texts": [name for name in columns if name in TEXTS],
        "stem": STEM,
        "setting": SETTING,
        "reasons": in_words.WORDS,
        "machines": _machines(frame),
        "experiments": {
            name: {"title": title(name), "question": grid.load(name).question}
            for name in _experiments(frame)
        },
        "published": [
            one
            for name in _experiments(frame)
            if name in published.EXPERIMENTS
            for one in _published(name)
        ],
        "card": published.CARD,
        "looks": {system: _look(system) for system in systems.ordered(frame["system"])},
    }


def _as_published(frame: pd.DataFrame) -> pd.Series:
    """Whether each record has the branches or blocks of its write-up, or is dense."""
    found = pd.Series(False, frame.index)
    for experiment, rows in frame.groupby("experiment"):
        if experiment in published.EXPERIMENTS:
            found[rows.index] = views.View(experiment, "", rows).as_published(rows, dense=True)
    return found


def _published(experiment: str) -> list[dict]:
    """The times and peaks that the write-up prints, by system and shape, in its setting."""
    fixed, found = published.setting(experiment), []
    heads = f"{fixed.heads} of {fixed.head_dim}"
    shared = {"experiment": experiment, "pass": "forward", "heads": heads, "dtype": fixed.dtype}
    shared["is_causal"] = fixed.is_causal
    for system in systems.of_experiment(experiment):
        for batch, n in published.shapes(experiment):
            values = {
                name: published.value(experiment, system, batch, n, name)
                for name in ("time", "memory")
            }
            if any(values.values()):
                found.append({**shared, "system": system, "batch": batch, "seq_len": n, **values})
    return found


def with_lines(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `line`: the system, and its pattern where it has several at one length."""
    blocks, branches = ["sparsity", "pattern", "block_size"], ["segment_lengths", "dilation_rates"]
    told = frame[[*blocks, *branches, "head_offset", "recipe"]]
    rows = frame.assign(pattern_words=[_pattern(row) for row in told.to_dict("records")])
    lines = pd.Series(rows["system"], rows.index, dtype=object)
    for _, group in rows.groupby([*SETTING, "kv_heads", "head_dim", "system"], sort=False):
        if group["seq_len"].duplicated().any():
            lines[group.index] = group["system"] + ", " + group["pattern_words"]
    return rows.assign(line=lines)


def _record(row: dict) -> dict:
    """A record's values for the page; what is not known is None."""
    stem = PurePosixPath(row["path"]).stem
    rate = rates.useful(row)
    return {
        **{name: row[name] for name in ("machine", "experiment", "pass", "dtype")},
        "is_causal": bool(row["is_causal"]),
        "heads": _heads(row),
        "batch": int(row["batch"]),
        "as_published": bool(row["as_published"]),
        "seq_len": int(row["seq_len"]),
        "system": row["system"],
        "line": row["line"],
        "pattern": row["pattern_words"],
        "sparsity": _number(row["sparsity"]),
        "status": row["status"],
        "reason": _text(row["reason"]),
        "backend": _text(row["backend"]),
        "median": _number(row["median_ms"]),
        "low": _number(row["low_ms"]),
        "high": _number(row["high_ms"]),
        "memory": _number(row["peak_memory_bytes"]),
        "density": _number(row["realised_density"]),
        "rate": _number(rate.value if rate else None),
        "rate_low": _number(rate.low if rate else None),
        "rate_high": _number(rate.high if rate else None),
        "error": _number(row["relative_rms"]),
        "dense_error": _number(row["baseline_relative_rms"]),
        "gradient_error": _number(row["gradient_relative_rms"]),
        "dense_gradient_error": _number(row["gradient_baseline_relative_rms"]),
        "rounds": [one.round for one in row["samples"]],
        "samples": [[_number(t, SAMPLE_DIGITS) for t in one.all] for one in row["samples"]],
        "stem": stem,
        "path": row["path"].replace(stem, STEM),
        "command": row["command"].replace(stem, STEM),
        "torch": row["torch"],
        "commit": _text(row["git_commit"]),
    }


def _machines(frame: pd.DataFrame) -> dict[str, str]:
    """Machine id -> what it is in words, the reporting one first."""
    order = records.machines(frame, records.reporting_machine(frame))
    first = frame.drop_duplicates("machine").set_index("machine", drop=False)
    return {name: machine_words(first.loc[name]) for name in order}


def _experiments(frame: pd.DataFrame) -> list[str]:
    """The write-ups first, in their order."""
    order = {name: place for place, name in enumerate(published.EXPERIMENTS)}
    return sorted(set(frame["experiment"]), key=lambda name: (order.get(name, len(order)), name))


def _pattern(row: dict) -> str:
    """Who attends to whom; of a training what is learnt, too."""
    offset = ", block offset" if row["head_offset"] == "block" else ""
    recipe = "" if pd.isna(row["recipe"]) else f", {row['recipe']}"
    return f"{_attends(row)}{offset}{recipe}"


def _attends(row: dict) -> str:
    if not math.isnan(row["sparsity"]):
        return views.blocks_in_words(row)
    if row["segment_lengths"] is None:
        return "all pairs"
    return branches_in_words(row["segment_lengths"], row["dilation_rates"])


def _heads(row: dict) -> str:
    few = "" if row["kv_heads"] == row["heads"] else f", {row['kv_heads']} for keys"
    return f"{row['heads']} of {row['head_dim']}{few}"


def _look(system: str) -> dict[str, str]:
    """Label, colours and the outline of the marker (SVG path, 1 unit a radius), as in figures."""
    one = style.look(system)
    ink = "#" + "".join(f"{round(255 * part):02x}" for part in one.ink)
    marker = MarkerStyle(one.marker)
    outline = marker.get_path().transformed(marker.get_transform())
    name = published.name(system)
    return {
        "label": one.label,
        "name": name,
        "color": one.color,
        "ink": ink,
        "marker": _svg(outline),
    }


def _svg(outline: Outline) -> str:
    letters = {
        Outline.MOVETO: "M",
        Outline.LINETO: "L",
        Outline.CURVE3: "Q",
        Outline.CURVE4: "C",
        Outline.CLOSEPOLY: "Z",
    }
    parts = []
    for points, code in outline.iter_segments():
        numbers = [] if code == Outline.CLOSEPOLY else points
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        # SVG has y downward.
        parts.append(letters[code] + " ".join(f"{2 * x:.3g},{-2 * y:.3g}" for x, y in pairs))
    return "".join(parts)


def _number(value: float | None, digits: int = DIGITS) -> float | int | None:
    if value is None or math.isnan(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def _text(value) -> str | None:
    return value if isinstance(value, str) else None


@command("results_page", records.RecordsError)
def main(arguments: list[str] | None = None) -> None:
    """Every record on one interactive page."""
    options = parser(main.__doc__, out="build/results.html", records=True)
    given = options.parse_args(arguments)
    write(given.out, page(records.load(*given.roots)))


if __name__ == "__main__":
    sys.exit(main())
