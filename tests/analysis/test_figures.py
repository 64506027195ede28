"""Figures: same records, same bytes; every point drawn; labels apart; nothing missing breaks."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from analysis import catalogue
from analysis.across import exponents, overview
from analysis.experiments.block_sparse import density, gain
from analysis.records import systems
from analysis.rendering import figure_csv, style, text
from analysis.selection import published, views
from analysis.standard import growth, panels, rate, speedup
from analysis.statistics.intervals import Interval
from tests.analysis import figure_values, synthetic


def _svg(figure, path) -> bytes:
    return style.save(figure, path).read_bytes()


ALL = [(e, name) for e in published.EXPERIMENTS for name in catalogue.figures(e)]


@pytest.mark.parametrize(
    ("experiment", "name"), [one for one in ALL if one[0] in ("block_sparse", "ring")]
)
def test_two_renders_are_the_same_bytes(laptop, build, tmp_path, experiment, name):
    again = _svg(catalogue.figures(experiment)[name](laptop, experiment), tmp_path / "f.svg")
    assert again == (build / "figures" / f"{experiment}-{name}.svg").read_bytes()
    assert b"<dc:date>" not in again


@pytest.mark.parametrize(("experiment", "name"), ALL)
def test_every_figure_is_written_with_its_values_beside_it(build, experiment, name):
    path = build / "figures" / f"{experiment}-{name}.svg"
    assert path.read_bytes().startswith(b"<?xml")
    assert list(csv.DictReader(path.with_suffix(".csv").open()))


@pytest.mark.parametrize(("experiment", "name"), ALL)
def test_every_figure_holds_the_values_of_its_records(both, experiment, name):
    figure = catalogue.figures(experiment)[name](both, experiment)
    assert figure.get_figwidth() in (style.COLUMN, style.PAGE)
    rows = _rows(figure)
    assert rows and all(row["series"] and row["shape"] for row in rows)
    figure_values.check(both, experiment, name, rows)


@pytest.mark.parametrize(("experiment", "name"), ALL)
def test_of_few_records_or_none_a_figure_holds_what_there_is(smoke, nothing, experiment, name):
    draw = catalogue.figures(experiment)[name]
    figure_values.check(smoke, experiment, name, _rows(draw(smoke, experiment)))
    # Of a machine that timed nothing: what is published, asked for, counted or modelled.
    empty = draw(nothing, experiment)
    assert bool(_rows(empty)) == (name in ("grid", "density", "orders", "model"))
    said = {text.get_text() for text in empty.findobj(Text)}
    assert bool(empty.axes) != ("nothing measured here" in said)


def _rows(figure) -> list[dict]:
    return list(csv.DictReader(io.StringIO(figure_csv.to_csv(figure))))


def test_points_and_intervals_are_the_records_medians(laptop):
    axes = growth.time(laptop, "comprehensive").axes[0]
    (series,) = views.view(laptop, "comprehensive").series()[:1]
    rows = series.timed("dense")
    drawn = axes.containers[0].lines[0].get_ydata()
    assert list(drawn) == pytest.approx(sorted(rows["median_ms"]))


def test_censored_points_stand_at_the_top_edge(both):
    axes = growth.time(both, "dilated", synthetic.GPU).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words.count("out of memory") == 1
    assert words.count("out of time") == 1


def test_a_label_carries_the_exponent(laptop):
    axes = growth.time(laptop, "dilated").axes[0]
    label = next(t.get_text() for t in axes.texts if t.get_text().startswith("Dense"))
    assert label == "Dense  $n^{2.00}$"


def test_an_exponent_that_is_hardly_known_is_not_drawn(laptop, monkeypatch):
    growth_of = views.Series.growth

    def widened(series, system, quantity):
        fit = growth_of(series, system, quantity)
        wide = Interval(1.6, 1.2, 2.9, 0.95)
        return replace(fit, exponent=wide) if fit and system == "dilated-gather" else fit

    monkeypatch.setattr(views.Series, "growth", widened)
    ax = growth.time(laptop, "dilated").axes[0]
    labels = [text.get_text() for text in ax.texts]
    assert "DilatedAttention" in labels and "ImprovedDilated" not in labels
    joined = {bars.get_label(): bars.lines[0].get_linestyle() for bars in ax.containers}
    assert (joined["DilatedAttention"], joined["ImprovedDilated"]) == (":", "None")
    assert not any(band.get_label() == "DilatedAttention: fit" for band in ax.collections)
    drawn = {(row.experiment, row.system) for row in exponents.rows_of(laptop)}
    assert ("dilated", "dilated-sdpa") in drawn
    times = [row.fits for row in exponents.rows_of(laptop) if row.system == "dilated-gather"]
    assert not any(quantity == "time" for fits in times for _, quantity in fits)


def test_a_series_of_one_system_has_no_panel_beside_those_that_compare(laptop):
    (series,) = views.view(laptop, "dilated").series()[:1]
    alone = replace(series, rows=series.rows[series.rows["system"] == "dense"])
    assert panels.comparing([alone, series]) == [series]
    assert panels.comparing([alone, alone]) == [alone, alone]
    assert panels.comparing([]) == []


def test_speed_ups_stand_beside_the_published_ones(laptop):
    left = speedup.speedup(laptop, "comprehensive").axes[0]
    texts = [text.get_text() for text in left.texts]
    assert {"17.22", "1.07", "4.28", "10.82", "5.62", "0.78"} <= set(texts)


def test_the_overview_compares_every_published_system(laptop):
    lines = overview.lines(views.view(laptop, "comprehensive"))
    by = {(line.system, line.seq_len): line for line in lines}
    assert by["ring-dilated", 8192].published == 17.22
    assert 3 < by["ring-dilated", 8192].measured.value < 4
    assert by["dilated-sdpa", 8192].published == 10.82
    assert 3 < by["dilated-sdpa", 8192].measured.value < 4
    sparse = overview.lines(views.view(laptop, "block_sparse"))
    by = {(line.system, line.seq_len): line for line in sparse}
    assert by["block-sparse@90", 2048].published == 0.31
    assert by["block-sparse@90", 16384].published is None
    assert 7 < by["block-sparse@90", 16384].measured.value < 8
    assert "dense" not in {line.system for line in sparse}
    figure = overview.overview(laptop)
    assert figure.get_figwidth() == style.PAGE
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        f"write-up “{name}”" for name in ("comprehensive", "dilated", "block_sparse")
    ]


def test_the_overview_command_names_a_missing_folder(tmp_path, capsys):
    assert overview.main(["--out", str(tmp_path / "o.svg"), str(tmp_path / "none")]) == 1
    assert "none: no such records folder" in capsys.readouterr().err


def test_labels_keep_their_order_and_their_distance():
    placed = style.spread([0.5, 0.5, 0.51, 0.9], 0.1, 0.0, 1.0)
    assert placed[3] == pytest.approx(0.9)
    gaps = [b - a for a, b in zip(placed, placed[1:], strict=False)]
    assert min(gaps) >= 0.1 - 1e-9
    assert style.spread([2.0], 0.1, 0.0, 1.0) == [1.0]
    crowded = style.spread([0.5] * 30, 0.1, 0.0, 1.0)
    assert (crowded[0], crowded[-1]) == (0.0, pytest.approx(1.0))


@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_looks_are_told_apart_without_colour(experiment):
    own = {systems.on_one_rank(system) for system in systems.of_experiment(experiment)}
    if experiment == "memory":  # these are in its tables alone
        own -= {"ring-hilbert", "ring-block-sparse@90"}
    assert len({style.look(system).marker for system in own}) == len(own)
    assert len({style.look(system).color for system in own}) == len(own)
    assert len({style.look(system).label for system in own}) == len(own)
    assert set(own) <= set(style.LOOKS)
    assert style.look("some-new-system").label == "some-new-system"


def _texts(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_the_gain_is_dense_over_block_sparse_under_its_ideal(laptop):
    ax = gain.gain(laptop, "block_sparse").axes[0]
    drawn = ax.containers[0].lines[0]
    assert list(drawn.get_xdata()) == [1024, 2048, 4096, 8192, 16384]
    expected = [
        (0.3 + 12 * k**2) / (40 + 1.5 * k**2) for k in (1, 2, 4, 8, 16)
    ]  # medians of synthetic.SPEED and FIXED at 90 %
    assert list(drawn.get_ydata()) == pytest.approx(expected)
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--")
    # Whole blocks: 2 of 16, 3 of 32, 6 of 64, 13 of 128, 26 of 256.
    assert list(dashed.get_ydata()) == pytest.approx([8, 32 / 3, 64 / 6, 128 / 13, 256 / 26])
    open_marks = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    # Published at batch 1, that of the panel, at 8192 tokens alone.
    assert [line.get_xdata()[0] for line in open_marks] == [8192] * 3
    assert sorted(line.get_ydata()[0] for line in open_marks) == [4.15, 4.52, 9.55]


def test_rates_stand_under_the_measured_ceiling(laptop):
    figure = rate.rate(laptop, "block_sparse")
    ax = figure.axes[0]
    ceiling = next(line for line in ax.lines if line.get_linewidth() == 1.4)
    assert list(ceiling.get_ydata()) == pytest.approx([200] * 5)  # GFLOP/s
    # 98 %: one block of 16 at 1024 tokens, and four float32 tensors at 12 GB/s.
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    bound = 4 * 8 * 1024**2 * 64 / 16 / (4 * 1024 * 8 * 64 * 4 / 1.2e10) / 1e9
    assert bound == pytest.approx(192)
    assert dashed[-1].get_ydata()[0] == pytest.approx(bound)
    assert "matmul ceiling" in _texts(figure)
    assert ax.get_ylabel() == "useful GFLOP/s"


def test_the_published_pattern_has_the_density_of_seven_blocks_a_row():
    found = density.published_density(np.array([2048, 4096, 8192, 16384]))
    assert list(1 - found) == pytest.approx([0.795, 0.894, 0.946, 0.973], abs=5e-4)


def test_a_note_is_broken_to_the_width_of_the_figure(laptop):
    figure = rate.rate(laptop, "block_sparse")
    assert figure.get_figwidth() == style.COLUMN
    assert max(map(len, figure.texts[-1].get_text().splitlines())) <= 20 * style.COLUMN


def test_a_figure_is_written_as_svg_png_and_csv_and_the_same_twice(laptop, tmp_path):
    draw = catalogue.figures("dilated")["time"]
    for name in ("a", "b"):
        style.save(draw(laptop, "dilated"), tmp_path / name / "f.svg")
    for form in text.FIGURE_FORMS:
        first, second = ((tmp_path / name / f"f.{form}").read_bytes() for name in ("a", "b"))
        assert first == second
    assert (tmp_path / "a" / "f.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["f.csv", "f.png", "f.svg"]
