"""Figures of `ring`: measured and modelled apart, simulated said, bars as long as their records."""

import pandas as pd
import pytest

from analysis.experiments.ring import (
    cost_model,
    figure_efficiency,
    figure_memory,
    figure_model,
    figure_orders,
    figure_traffic,
)
from analysis.rendering import style
from tests.analysis.synthetic_ranks import GAIN, WAITING


def _texts(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def _titles(figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def test_memory_a_token_is_a_line_for_each_number_of_ranks(laptop):
    alone, shared = figure_memory.memory_ranks(laptop, "ring").axes
    assert "simulated ranks" in shared.get_title(loc="left")
    labels = [text.get_text() for text in shared.texts]
    assert [label.partition("  ")[0] for label in labels] == [f"p = {p}" for p in (2, 4, 8, 16)]
    assert all(label.endswith("$n^{1.00}$") for label in labels)
    points = [line for line in shared.lines if line.get_marker() not in ("None", "")]
    assert [list(line.get_xdata()) for line in points] == [[2048, 4096, 8192, 16384]] * 4
    last = [line.get_ydata()[-1] for line in points]
    assert [last[0] / y for y in last] == pytest.approx([1, 2, 4, 8], rel=0.03)
    published = [line for line in alone.lines if line.get_markerfacecolor() == "white"]
    heights = sorted(line.get_ydata() for line in published)
    assert [float(y[0]) for y in heights] == [21.031, 21.531, 37.281]


def test_efficiency_is_speed_up_over_ranks_with_the_share_that_waited(laptop):
    (ax,) = figure_efficiency.efficiency(laptop, "ring").axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([50 * 2**GAIN] * 13)
    assert len(labels) == 13
    assert not any("simulated" in title for title in _titles(ax.figure))
    assert set(_texts(ax.figure)) == {f"{50 * 2**GAIN:.0f} %, {100 * WAITING:.0f} % waiting"}
    (ideal,) = [line for line in ax.lines if list(line.get_xdata()) == [100, 100]]
    assert ideal.get_color() == "black"
    assert labels[0] == "Ring, contiguous, 4K" and labels[-1] == "Ring, zigzag, 4K, training"
    assert len([line for line in ax.lines if line.get_label().endswith(": interval")]) == 13


def test_efficiency_says_in_the_labels_what_differs_and_of_a_gpu_that_waiting_is_not_seen(laptop):
    row = (laptop["system"] == "ring-striped/p2") & (laptop["seq_len"] == 8192)
    other = laptop.assign(
        world_size=laptop["world_size"].mask(row, 4.0), wait_share=laptop["wait_share"].mask(row)
    )
    (ax,) = figure_efficiency.efficiency(other, "ring").axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    place = labels.index("Ring, striped, 8K, p = 4")
    assert "Ring, zigzag, 8K, p = 2" in labels
    assert ax.get_title(loc="left").endswith("float32, p ranks")
    assert ax.patches[place].get_width() == pytest.approx(100 * 2**GAIN / 4)
    assert _texts(ax.figure)[place] == f"{100 * 2**GAIN / 4:.0f} %"
    on_gpu = laptop.assign(device_kind="cuda")
    note = figure_efficiency.efficiency(on_gpu, "ring").texts[-1].get_text().replace("\n", " ")
    assert note.endswith("On a GPU it is not seen.") and "one core" not in note


def test_of_bars_without_number_those_of_small_batches_and_long_texts_are_drawn(laptop):
    """Ten thousand cases made 307 bars, in a figure of two metres."""
    batches = laptop["batch"].max() + 1
    many = pd.concat([laptop.assign(batch=laptop["batch"] + batches * i) for i in range(5)])
    (one,) = figure_efficiency.efficiency(laptop, "ring").axes
    (ax,) = figure_efficiency.efficiency(many, "ring").axes
    drawn, alone = ([label.get_text() for label in a.get_yticklabels()] for a in (ax, one))
    assert len(alone) == 13 and len(drawn) == len(ax.patches) == 40
    # Three batches of each bar, and of the fourth the one of the longest text.
    counts = {label: drawn.count(label) for label in alone}
    assert sorted(counts.values()) == [3] * 12 + [4]
    assert "16K" in max(counts, key=counts.get)
    said = ax.figure.texts[-1].get_text().replace("\n", " ")
    assert "Of 65 bars the 40 of the smallest batches" in said
    assert "65" not in one.figure.texts[-1].get_text()
    (sent,) = figure_traffic.traffic(many, "ring").axes
    (few,) = figure_traffic.traffic(laptop, "ring").axes
    assert len(sent.patches) == min(40, 5 * len(few.patches))


def test_bytes_are_bars_of_real_ranks_over_the_dense_formula(laptop):
    (ax,) = figure_traffic.traffic(laptop, "ring").axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    widths = dict(zip(labels, (bar.get_width() for bar in ax.patches), strict=True))
    assert widths["Ring, contiguous, 8K"] == 100
    assert widths["Ring, dilated, 16K"] == 25
    assert widths["Ring, sparse 95 %, 16K"] == 12.5
    assert not any("PyTorch" in label for label in labels)


def test_the_model_has_a_figure_of_its_own_and_is_dashed(laptop):
    figure = figure_model.model(laptop, "ring")
    assert all(title.startswith("modelled, ") for title in _titles(figure))
    assert figure.texts[-1].get_text().startswith("Modelled, not measured")
    for ax in figure.axes:
        assert not ax.containers
        assert all(line.get_linestyle() != "-" for line in ax.lines)
        assert all(line.get_marker() in ("None", "") for line in ax.lines)
        assert ax.lines[-1].get_xdata()[-1] == cost_model.MAX_RANKS


def test_orders_are_counted(laptop):
    blocks, received = figure_orders.orders(laptop, "ring").axes
    labels = [label.get_text() for label in blocks.get_yticklabels()]
    assert labels[:4] == [f"grid, {curve}" for curve in ("row-major", "snake", "morton", "hilbert")]
    assert [bar.get_width() for bar in received.patches][:2] == pytest.approx([37.5, 37.5])


def test_a_system_over_ranks_looks_as_on_one_and_says_how_many():
    one, two, simulated = (
        style.look(f"ring-striped{ranks}") for ranks in ("", "/p2", "/p4-simulated")
    )
    assert (one.color, one.marker) == (two.color, two.marker)
    assert (two.label, simulated.label) == ("Ring, striped, p = 2", "Ring, striped, p = 4 sim.")
    unknown = style.look("ring-block-sparse@75/p2")
    assert unknown.label == "ring-block-sparse@75, p = 2"
