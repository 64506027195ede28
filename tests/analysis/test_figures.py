"""Figures: same records, same bytes; every point drawn; labels apart; nothing missing breaks."""

import pytest

from analysis import drawing, figures, overview
from tests.analysis import synthetic


def _svg(figure, path) -> bytes:
    return drawing.save(figure, path).read_bytes()


@pytest.mark.parametrize("name", figures.FIGURES)
def test_two_renders_are_the_same_bytes(laptop, tmp_path, name):
    draw = figures.FIGURES[name]
    first, second = (_svg(draw(laptop, "comprehensive"), tmp_path / f"{i}.svg") for i in range(2))
    assert first == second
    assert b"<dc:date>" not in first


@pytest.mark.parametrize("experiment", ["dilated", "comprehensive"])
@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_of_two_machines_and_of_smoke_records(
    both, smoke, tmp_path, name, experiment
):
    for frame in (both, smoke):
        figure = figures.FIGURES[name](frame, experiment)
        assert figure.get_figwidth() in (drawing.COLUMN, drawing.PAGE)
        assert _svg(figure, tmp_path / "f.svg").startswith(b"<?xml")


def test_points_and_intervals_are_the_records_medians(laptop):
    axes = figures.time(laptop, "comprehensive").axes[0]
    rows = laptop[(laptop["experiment"] == "comprehensive") & (laptop["variant"] == "dense")]
    drawn = axes.containers[0].lines[0].get_ydata()
    assert list(drawn) == pytest.approx(sorted(rows["median_ms"]))


def test_censored_points_stand_at_the_top_edge(both):
    axes = figures.time(both, "dilated", synthetic.GPU).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words.count("out of memory") == 1
    assert words.count("out of time") == 1


def test_a_label_carries_the_exponent(laptop):
    axes = figures.time(laptop, "dilated").axes[0]
    label = next(t.get_text() for t in axes.texts if t.get_text().startswith("Dense"))
    assert label == "Dense  $n^{2.00}$"


def test_speed_ups_stand_beside_the_published_ones(laptop):
    left = figures.speedup(laptop, "comprehensive").axes[0]
    texts = [text.get_text() for text in left.texts]
    assert {"17.22"}.isdisjoint(texts)  # the ring has no record, so no bar
    assert {"1.07", "4.28", "10.82", "5.62", "0.78"} <= set(texts)


def test_the_overview_compares_every_published_system(laptop):
    from analysis import views

    lines = overview.lines(views.view(laptop, "comprehensive"))
    by = {(line.variant, line.seq_len): line for line in lines}
    assert by["ring", 8192].published == 17.22
    assert by["ring", 8192].measured is None
    assert by["dilated-sdpa", 8192].published == 10.82
    assert 3 < by["dilated-sdpa", 8192].measured.value < 4
    assert overview.overview(laptop).get_figwidth() == drawing.PAGE


def test_the_overview_command_names_a_missing_folder(tmp_path, capsys):
    assert overview.main(["--out", str(tmp_path / "o.svg"), str(tmp_path / "none")]) == 1
    assert "none: no such records folder" in capsys.readouterr().err


def test_labels_keep_their_order_and_their_distance():
    placed = drawing.spread([0.5, 0.5, 0.51, 0.9], 0.1, 0.0, 1.0)
    assert placed[3] == pytest.approx(0.9)
    gaps = [b - a for a, b in zip(placed, placed[1:], strict=False)]
    assert min(gaps) >= 0.1 - 1e-9
    assert drawing.spread([2.0], 0.1, 0.0, 1.0) == [1.0]
    crowded = drawing.spread([0.5] * 30, 0.1, 0.0, 1.0)
    assert (crowded[0], crowded[-1]) == (0.0, pytest.approx(1.0))


def test_looks_are_told_apart_without_colour():
    variants = [v for v in drawing.LOOKS if not v.startswith("ring")]
    assert len({drawing.look(v).marker for v in variants}) == len(variants)
    assert len({drawing.look(v).color for v in variants}) == len(variants)
    assert drawing.look("some-new-system").label == "some-new-system"
