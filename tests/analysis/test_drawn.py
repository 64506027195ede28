"""Figures as CSV: every labelled number, exact, under its axis's name; decoration left out."""

import csv
import io

import pytest
from matplotlib.figure import Figure

from analysis.rendering import figure_csv, style
from analysis.standard import growth, speedup
from tests.analysis import synthetic


def _rows(figure) -> list[dict]:
    return list(csv.DictReader(io.StringIO(figure_csv.to_csv(figure))))


@pytest.fixture
def ax():
    axes = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set_xlabel("length $n^{2}$")
    axes.set_ylabel("time (ms)")
    return axes


def test_points_keep_every_digit_and_their_interval(ax):
    ax.set_title("one\ntwo", loc="left")
    ax.errorbar([1, 2], [0.1 + 0.2, 4], yerr=[[0.1, 1], [0.5, 2]], fmt="o", label="a")
    ax.axhline(1)
    rows = _rows(ax.figure)
    assert list(rows[0]) == [
        "panel", "series", "shape", "length n^2", "time (ms)", "start", "low", "high",
    ]  # fmt: skip
    assert [row["time (ms)"] for row in rows] == ["0.30000000000000004", "4.0"]
    assert [(float(row["low"]), float(row["high"])) for row in rows] == [
        pytest.approx((0.2, 0.8)), (3, 6),
    ]  # fmt: skip
    assert {(row["panel"], row["series"], row["shape"]) for row in rows} == {
        ("one; two", "a", "point")
    }


def test_an_interval_along_x_a_band_and_a_bar_are_read(ax):
    ax.errorbar([5], [1], xerr=[[1], [2]], fmt="o", label="across")
    ax.fill_between([1, 2, 4], [1, 2, 3], [4, 5, 6], label="band")
    ax.barh([0], [3], left=2, label="bar")
    by = {}
    for row in _rows(ax.figure):
        by.setdefault(row["series"], []).append(row)
    assert [float(by["across"][0][end]) for end in ("low", "high")] == [4, 7]
    edges = [tuple(float(r[k]) for k in ("length n^2", "low", "high")) for r in by["band"]]
    assert edges == [(1, 1, 4), (2, 2, 5), (4, 3, 6)]
    assert [float(by["bar"][0][k]) for k in ("start", "length n^2")] == [2, 5]


def test_an_axis_of_names_gives_the_name_and_a_note_its_columns(ax):
    ax.set_ylabel("")
    ax.set_yticks([0.5, 1.5, 2.5], ["low", "middle", "high"])
    ax.plot([1], [1.5], "o", label="a")
    figure_csv.note(ax, "b", "cell", ratio=1.25, word="undecided")
    first, second = _rows(ax.figure)
    assert (first["name"], first["ratio"]) == ("middle", "")
    assert (second["ratio"], second["word"], second["shape"]) == ("1.25", "undecided", "cell")


def test_what_has_no_height_on_the_axis_has_no_value(ax):
    ax.plot(512, 0.97, transform=ax.get_xaxis_transform(), label="dense: out of memory")
    (row,) = _rows(ax.figure)
    assert (row["length n^2"], row["time (ms)"]) == ("512.0", "")


def test_a_labelled_shape_that_cannot_be_read_is_named(ax):
    ax.scatter([1], [2], label="cloud")
    with pytest.raises(TypeError, match="PathCollection 'cloud': no rows for such a shape"):
        figure_csv.to_csv(ax.figure)


def test_a_figure_is_saved_with_its_medians(laptop, tmp_path):
    style.save(growth.time(laptop, "dilated"), tmp_path / "f.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", "f.png", "f.svg"]
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    own = laptop[(laptop["experiment"] == "dilated") & (laptop["system"] == "dense")]
    own = own[(own["batch"] == 1) & own["is_causal"] & (own["pass"] == "forward")]
    found = {
        float(row["sequence length n (tokens, K = 1024)"]): float(row["median time (ms)"])
        for row in rows
        if row["series"] == "Dense" and row["shape"] == "point"
    }
    expected = dict(zip(own["seq_len"].astype(float), own["median_ms"], strict=True))
    assert found == expected


def test_published_and_measured_bars_stand_under_their_shape(laptop):
    rows = _rows(speedup.speedup(laptop, "comprehensive"))
    name, over = "ImprovedDilated, 8192 tokens, batch 1", "speed-up over DilatedAttention"
    by = {row["series"]: row for row in rows if row[over]}
    assert float(by[f"{name}: published"][over]) == pytest.approx(10.82, abs=0.01)
    assert 3 < float(by[name][over]) < 4 and by[name]["name"] == "ImprovedDilated"


def test_both_sides_of_the_speed_ups_say_what_they_are_of(laptop):
    left, right = speedup.speedup(laptop, "dilated").axes
    titles = [ax.get_title(loc="left") for ax in (left, right)]
    same = f"{synthetic.CPU_NAME}, float32, causal"
    assert titles == [
        f"{same}\n12 heads of 64, the published patterns",
        f"{same}\n8 heads of 64, segments 512 to 2K",
    ]
    headings = [text.get_text() for text in right.texts if "tokens" in text.get_text()]
    assert headings == [f"{n} tokens, batch 1" for n in (512, 1024, 2048, 4096, 8192)]
