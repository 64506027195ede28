"""Figures of `quality`: every value where it belongs, few systems or many, machines or seeds."""

import csv
import io

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.experiments.quality import (
    figure_curves,
    figure_frontier,
    figure_length,
    figure_recall,
    naming,
)
from analysis.experiments.quality import views as quality_views
from analysis.records import learnt
from analysis.rendering import figure_csv, placing, style
from analysis.selection import views
from analysis.statistics import seeds
from tests.analysis import synthetic
from tests.analysis import synthetic_trainings as known
from tests.analysis.quality_cases import (
    MAIN,
    RECALL,
    TEXT,
    all_cases,
    blocks,
    branched,
    case,
    lesson,
    load,
    write,
)

DRAWN = {
    "length": figure_length.length,
    "recall": figure_recall.recall,
    "frontier": figure_frontier.frontier,
    "curves": figure_curves.curves,
}


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Of two machines, of which the card did text alone."""
    with pytest.MonkeyPatch.context() as patched:
        root = tmp_path_factory.mktemp("quality") / "published"
        write(root, all_cases(), synthetic.CPU)
        write(root, lesson(TEXT), synthetic.GPU)
        yield load(root, patched)


@pytest.fixture(scope="module")
def laptop(frame):
    return frame[frame["machine"] == synthetic.CPU]


def _rows(figure: Figure) -> list[dict]:
    return list(csv.DictReader(io.StringIO(figure_csv.to_csv(figure))))


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_loss_by_length_is_that_of_whole_rows_beside_n_grams(laptop):
    figure = figure_length.length(laptop, "quality")
    left, right = figure.axes
    rows = [row for row in _rows(figure) if "length trained at" in row["panel"]]
    found = {
        float(row["length trained at (bytes)"]): float(row["bits per byte"])
        for row in rows
        if row["series"].startswith("Dilated") and row["shape"] == "line"
    }
    expected = {n: known.loss(branched(("text-smoke", n), MAIN)) for n in (64, 128, 256)}
    assert found == pytest.approx(expected)
    for ax in (left, right):
        heights = {
            line.get_label(): line.get_ydata()[0]
            for line in ax.lines
            if line.get_label().endswith("gram")
        }
        assert heights == {"3-gram": 2.9, "5-gram": 2.3}


def test_loss_by_position_leaves_out_the_first_positions(laptop):
    left = figure_length.length(laptop, "quality").axes[0]
    drawn = next(one for one in left.containers if one.get_label() == "Dense")
    line, _, (bars,) = drawn.lines
    # Ranges from 8, 16, ... 128 of 256.
    assert [round(x) for x in line.get_xdata()] == [11, 22, 45, 90, 181]
    assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)
    lessons = quality_views.main_lessons(views.view(laptop, "quality"))
    row = next(one.dense.row for one in lessons if one.is_text)
    losses = learnt.by_range(row, "by_position", learnt.LOSS)[8]
    assert len(losses) == 2 * synthetic.ROUNDS
    expected = seeds.mean(losses, again=2)
    (_, low), (_, high) = bars.get_segments()[0]
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_a_cell_of_the_map_is_the_accuracy_at_a_distance(laptop):
    figure = figure_recall.recall(laptop, "quality")
    cells = {
        (row["series"], row["distance"]): float(row["accuracy"])
        for row in _rows(figure)
        if row["shape"] == "cell"
    }
    made = blocks(RECALL, "random")
    for distance in known.distances(made):
        expected = 100 * known.accuracy_at(made, distance)
        assert cells["Random 90 %", str(distance)] == pytest.approx(expected)
    assert cells["Random 90 %", "all"] == pytest.approx(100 * known.accuracy(made))
    assert len(cells) == len(lesson(RECALL)) * (len(known.distances(made)) + 1)
    named = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert named[0] == "Dense" and named[-1] == "Random 90 %"
    assert any("recall: chance 6.25 %" in text for text in _texts(figure))


def test_what_a_blind_guess_gets_is_hatched(laptop):
    """Of distances that are missed the accuracy is 10 %, and chance 6.25 %."""
    figure = figure_recall.recall(laptop, "quality")
    assert not any(patch.get_hatch() for patch in figure.axes[0].patches)
    low = laptop.assign(
        learning=[
            one.model_copy(update={"facts": {"chance_accuracy": 0.2}}) for one in laptop["learning"]
        ]
    )
    figure = figure_recall.recall(low, "quality")
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    missed = [
        distance
        for one in lesson(RECALL)
        for distance in known.distances(one)
        if known.accuracy_at(one, distance) == known.FAR
    ]
    assert len(hatched) == len(missed)


def test_every_system_is_a_numbered_point_of_the_frontier(laptop):
    figure = figure_frontier.frontier(laptop, "quality")
    text, recall, key = figure.axes[0], figure.axes[1], figure.axes[2]
    count = len(lesson(TEXT))
    for ax in (text, recall):
        assert sorted(int(one.get_text()) for one in ax.texts) == [*range(1, count + 1)]
    words = [one.get_text() for one in key.texts]
    assert words[::2] == [*map(str, range(1, count + 1))]
    assert words[1] == "Dense"
    points = {
        row["series"]: (float(row["time of a training step (ms)"]), float(row["bits per byte"]))
        for row in _rows(figure)
        if row["shape"] == "point" and ", text, " in row["panel"] and "seed" not in row["series"]
    }
    made = blocks(TEXT, "top_k")
    assert points["Top-k 90 %"] == pytest.approx((known.step_ms(made), known.loss(made)))
    of_seeds = [row for row in _rows(figure) if row["series"] == "Dense: a seed"]
    assert len(of_seeds) == 2 * 2 * synthetic.ROUNDS


def test_no_system_beats_one_on_the_frontier(laptop):
    for one in quality_views.main_lessons(views.view(laptop, "quality")):
        front = figure_frontier.pareto(one)
        sign = -1 if one.is_text else 1
        at = {x.slug: (x.row["median_ms"], sign * one.score(x).value) for x in one.learners}
        for x in one.learners:
            beaten = any(
                time <= at[x.slug][0] and score >= at[x.slug][1] and (time, score) != at[x.slug]
                for time, score in at.values()
            )
            assert beaten != (x in front)
        assert front[-1] is one.dense


def test_curves_end_at_the_last_losses_after_as_many_flops(laptop):
    rows = _rows(figure_curves.curves(laptop, "quality"))
    ends = {}
    for row in rows:
        if row["series"] == "Dense" and ", text, " in row["panel"]:
            for name in ("steps", "FLOPs of the training"):
                if row[name]:
                    ends[name] = float(row[name]), float(row["validation loss (bits per byte)"])
    made = case("dense", *TEXT)
    flops = 4 * synthetic.useful_flops(made)
    assert ends["steps"] == pytest.approx((4, known.loss(made)))
    assert ends["FLOPs of the training"] == pytest.approx((flops, known.loss(made)), rel=1e-6)


def test_each_machine_has_panels_of_its_own(frame):
    titles = [ax.get_title(loc="left") for ax in figure_length.length(frame, "quality").axes]
    assert [title.partition(",")[0] for title in titles] == ["A Big GPU", *2 * [synthetic.CPU_NAME]]
    # One machine alone has frontiers and curves: that with most systems.
    for draw, count in ((figure_frontier.frontier, 2), (figure_curves.curves, 4)):
        titles = [ax.get_title(loc="left") for ax in draw(frame, "quality").axes]
        assert sum(title.startswith(synthetic.CPU_NAME) for title in titles) == count
        assert not any("GPU" in title for title in titles)
    titles = [
        ax.get_title(loc="left")
        for ax in figure_curves.curves(frame, "quality", synthetic.GPU).axes
    ]
    assert all(title.startswith("A Big GPU") for title in titles)


@pytest.mark.parametrize("name", DRAWN)
def test_few_records_are_drawn_as_far_as_they_go(laptop, tmp_path, name):
    alone = laptop.assign(trainings=[one[:1] for one in laptop["trainings"]])
    dense = laptop[laptop["system"] == "dense"]
    for few in (alone, dense, laptop[laptop["recipe"] == "recall-smoke"]):
        style.save(DRAWN[name](few, "quality"), tmp_path / "f.svg")
    none = laptop.assign(status="failed")
    assert "nothing measured here" in _texts(DRAWN[name](none, "quality"))


def test_more_systems_than_can_be_read_are_left_out_and_counted(laptop, monkeypatch):
    monkeypatch.setattr(figure_recall, "MOST_ROWS", 4)
    figure = figure_recall.recall(laptop, "quality")
    assert len(figure.axes[0].get_yticklabels()) == 4
    said = " ".join(_texts(figure)).replace("\n", " ")
    assert f"Left out: the last {len(lesson(RECALL)) - 4} systems." in said


def test_labels_cover_neither_points_nor_each_other():
    with style.style():
        ax = Figure(figsize=(4, 3)).add_axes((0.1, 0.1, 0.8, 0.8))
        points = [(x, y) for x in (1.0, 1.05, 1.1) for y in (1.0, 1.1, 1.2)]
        ax.plot(*zip(*points, strict=True), "o")
        ax.set_xlim(0, 2)
        ax.set_ylim(0, 2)
        labels = [placing.Beside(x, y, f"system {i}", "black") for i, (x, y) in enumerate(points)]
        placing.label_points(ax, labels)
        for text in ax.texts:
            text.get_window_extent()  # which puts it in its place
        # Without the line that leads to the point, and what is rounded to whole pixels.
        boxes = [Text.get_window_extent(text).padded(-1) for text in ax.texts]
    assert len(boxes) == len(points)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        at = ax.transData.transform(points)
        assert not any(box.contains(*point) for point in at)


def test_a_kind_gets_darker_from_one_system_to_the_next():
    rows = [blocks(TEXT, "strided", sparsity).cells() for sparsity in (0.98, 0.9, 0.95)]
    looks = naming.looks(rows)
    shades = [int(looks[f"block-sparse-sdpa@{p}-strided"].color[1:3], 16) for p in (90, 95, 98)]
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == 3
