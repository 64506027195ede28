"""Maps, rooflines and the figure of exponents: who wins, by the records' own ratios."""

import csv
import io
import math
from dataclasses import replace

import pytest

from analysis.across import exponents, overview
from analysis.rendering import figure_csv, style
from analysis.selection import published, rates, views
from analysis.standard import maps, roofline, shapes
from analysis.standard.maps import Cell, Map
from analysis.statistics.intervals import Interval
from tests.analysis import synthetic


def _rows(figure) -> list[dict]:
    return list(csv.DictReader(io.StringIO(figure_csv.to_csv(figure))))


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [
        (Cell(2.0, 1.8, 2.2), "above"),
        (Cell(0.5, 0.4, 0.6), "below"),
        (Cell(1.2, 0.9, 1.6), "undecided"),
        (Cell(2.0), "above"),  # published: no interval
        (Cell(1.0), "undecided"),
        (Cell.measured(Interval(3.0, math.nan, math.nan, 0.0)), "undecided"),
        (Cell(), "none"),
    ],
)
def test_a_cell_is_decided_by_its_interval(cell, verdict):
    assert cell.verdict == verdict


def test_a_map_colours_by_winner_and_hatches_what_is_missing():
    cells = {("a", "1K"): Cell(4.0, 3, 5), ("a", "2K"): Cell(0.5, 0.4, 0.6)}
    figure = maps.maps_of([Map("t", ["a", "b"], ["1K", "2K"], cells)], "note")
    patches = [p for p in figure.axes[0].patches if p.get_fill()]
    above, below, empty, _ = patches
    assert above.get_facecolor()[2] > above.get_facecolor()[0]  # blue
    assert below.get_facecolor()[0] > below.get_facecolor()[2]  # orange
    assert empty.get_hatch() and not above.get_hatch()
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["4.00", "0.50", "", ""]
    assert figure.get_figwidth() == style.COLUMN
    assert maps.maps_of([], "note").axes == []


def test_cells_stay_inside_the_page_however_many_lengths():
    columns = [f"{n}K" for n in range(40)]
    figure = maps.maps_of([Map("t", ["a"], columns, {}), Map("u", ["a"], columns, {})], "")
    assert figure.get_figwidth() == style.PAGE
    assert max(ax.get_position().x1 for ax in figure.axes) <= 1


def test_published_speed_ups_stand_beside_measured_ones_by_shape(laptop):
    figure = shapes.grid(laptop, "comprehensive")
    assert len(figure.axes) == 2
    rows = {
        (row["panel"].split(",")[0], row["series"], row["column"]): row for row in _rows(figure)
    }
    assert float(rows["published", "Ring, dilated", "8K, b1"]["ratio"]) == 17.22
    assert 3 < float(rows["measured", "Ring, dilated", "8K, b1"]["ratio"]) < 4
    own = rows["measured", "ImprovedDilated", "8K, b1"]
    assert float(own["low"]) < float(own["ratio"]) < float(own["high"])
    assert float(rows["measured", "ImprovedDilated", "8K, b4"]["ratio"]) > 1
    # What has no published ratio has no row: nothing stands beside it.
    assert {"Dense", "Head-partitioned"}.isdisjoint(series for _, series, _ in rows)
    sparse = _rows(shapes.grid(laptop, "block_sparse"))
    assert {row["column"] for row in sparse} == {"2K, b4", "4K, b2", "8K, b1"}


def test_another_batch_is_named(laptop):
    def note(frame):
        return shapes.grid(frame, "block_sparse").texts[-1].get_text().replace("\n", " ")

    assert "Measured at another batch" not in note(laptop)
    alone = laptop[laptop["batch"] == 1]
    assert note(alone).endswith("Measured at another batch: 2K: 1, 4K: 1.")


def test_points_stand_at_their_intensity_under_the_measured_roof(laptop):
    figure = roofline.roofline(laptop, "backends")
    rows = _rows(figure)
    view = views.view(laptop, "backends")
    row = view.series()[0].row("dense-flash", 1024)
    # 4 n^2 d H over four tensors of n H d float32: n / 4.
    assert rates.intensity(row) == pytest.approx(1024 / 4)
    assert rates.copy_bound(row) == pytest.approx(1024 / 4 * 1.2e10)
    flash = [r for r in rows if r["series"] == "SDPA flash"]
    point = next(r for r in flash if float(r[_X]) == pytest.approx(1024 / 4))
    assert float(point["useful GFLOP/s"]) == pytest.approx(rates.useful(row).value / 1e9)
    roof = [r for r in rows if r["series"] == "roof"]
    assert max(float(r["useful GFLOP/s"]) for r in roof) == 200
    first = roof[0]
    assert float(first["useful GFLOP/s"]) == pytest.approx(12 * float(first[_X]))


_X = "useful FLOPs per byte moved"


def test_every_exponent_stands_under_its_machine_with_its_interval(laptop):
    rows = exponents.rows_of(laptop)
    by = {(row.experiment, row.system): row.fits for row in rows}
    fit = by["dilated", "dense"][synthetic.CPU, "time"]
    assert fit.exponent.value == pytest.approx(2, abs=0.05)
    assert ("memory", "dense-eager") in by
    assert {quantity for _, quantity in by["memory", "dense"]} == {"memory"}
    figure = overview.FIGURES["scaling"](laptop)
    drawn_rows = _rows(figure)
    name = f"dilated, {synthetic.CPU}, 512–8K"
    own = next(r for r in drawn_rows if r["series"] == name and r["name"] == "Dense")
    column = "exponent k of time over length"
    assert float(own[column]) == pytest.approx(fit.exponent.value)
    assert float(own["low"]) == pytest.approx(fit.exponent.low)
    assert float(own["high"]) == pytest.approx(fit.exponent.high)
    words = [text.get_text() for text in figure.axes[1].texts]
    assert "O($n$)" in words and "O($n^{2}$)" in words


def test_an_exponent_whose_interval_is_wider_than_one_is_not_drawn(laptop):
    fits = [fit for row in exponents.rows_of(laptop) for fit in row.fits.values()]
    assert fits and all(not fit.exponent.high - fit.exponent.low > 1 for fit in fits)
    wide = replace(fits[0], exponent=Interval(2.0, 1.4, 2.5, 0.95))
    assert not wide.is_narrow
    assert replace(wide, exponent=Interval(2.0, 1.5, 2.5, 0.95)).is_narrow
    assert not replace(wide, exponent=Interval.without_spread(2.0)).is_narrow


def test_the_figure_of_exponents_is_drawn_of_few_records(smoke, nothing, tmp_path):
    for frame in (smoke, nothing):
        path = style.save(exponents.scaling(frame), tmp_path / "f.svg")
        assert path.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("experiment", "system", "quantity", "said"),
    [
        ("ring", "ring-standard", "memory", "O(n)"),
        ("ring", "ring-block-sparse@90", "memory", "O(n^2)"),
        ("dilated", "dilated-gather", "memory", "below n"),
        ("dilated", "dilated-gather", "time", "below n^2"),
        ("block_sparse", "dense", "memory", "O(n^2)"),
        ("backends", "dense-eager", "time", None),
    ],
)
def test_how_a_write_up_says_that_something_grows(experiment, system, quantity, said):
    assert published.growth(experiment, system, quantity) == said


def test_a_ratio_without_interval_stays_without(laptop):
    rows = _rows(shapes.grid(laptop, "block_sparse"))
    cell = next(row for row in rows if "published" in row["panel"])
    assert math.isfinite(float(cell["ratio"])) and (cell["low"], cell["high"]) == ("", "")
