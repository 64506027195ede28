"""`ring` of few records: what is missing is a dash or no line, and nothing breaks."""

import csv
import io

import numpy as np
import pytest

from analysis import catalogue
from analysis.experiments.ring import cost_model, figure_efficiency, figure_model, figure_traffic
from tests.analysis import synthetic
from tests.analysis.synthetic_ranks import GAIN

FIGURES, TABLES = catalogue.figures("ring"), catalogue.tables("ring")
FEW = {
    "dense": ("dense",),
    "two ranks": ("ring-distributed/p2",),
    "one and two ranks": ("ring-standard", "ring-standard/p2"),
    "simulated": ("ring-distributed/p4-simulated",),
    "another's": ("torch-context-parallel-allgather/p2",),
    "not causal": ("ring-hilbert",),
}


def _of(laptop, *systems):
    rows = laptop[(laptop["experiment"] == "ring") & laptop["system"].isin(systems)]
    assert len(rows)
    return rows


@pytest.fixture(params=FEW)
def few(laptop, request):
    """At most two records a system."""
    return _of(laptop, *FEW[request.param]).groupby("system").head(2)


def _rows(made) -> list[dict]:
    return list(csv.DictReader(io.StringIO(made.to_csv())))


def _titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def _texts(ax):
    return [text.get_text() for text in ax.texts]


def _panel(figure, *words):
    (ax,) = [ax for ax in figure.axes if all(word in ax.get_title(loc="left") for word in words)]
    return ax


# --- Whatever there is ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_of_few_records(few, name):
    figure = FIGURES[name](few, "ring")
    figure.draw_without_rendering()
    # Either something is drawn or the figure says that there is nothing.
    words = [text.get_text() for text in figure.texts]
    assert bool(figure.axes) != ("nothing measured here" in words)
    for ax in figure.axes:
        assert ax.lines or ax.patches
        assert ax.get_title(loc="left")
        assert np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all()


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_made_of_few_records(few, name):
    made = TABLES[name](few, "auto")
    assert all(len(row) == len(made.columns) for row in made.rows)
    assert "nan" not in made.to_markdown()


def test_numbers_are_the_same_keys_of_few_records(few, numbers_of):
    assert set(catalogue.numbers(few, "ring")) == set(numbers_of("laptop", "ring"))


def test_what_needs_no_ranks_is_drawn_without_any(laptop):
    dense = _of(laptop, "dense")
    for name in ("efficiency", "traffic"):
        assert FIGURES[name](dense, "ring").axes == []
    assert len(FIGURES["model"](dense, "ring").axes) == 4
    assert len(FIGURES["orders"](dense, "ring").axes) == 2
    assert _titles(FIGURES["memory-ranks"](dense, "ring")) == [
        f"{synthetic.CPU_NAME}, one device, float32"
    ]


# --- Something missing ---------------------------------------------------------------------------


def test_without_the_record_of_one_rank_there_is_no_speed_up(laptop):
    without = laptop[laptop["world_size"] != 1]
    rows = _rows(TABLES["strong"](without, "auto"))
    assert len(rows) == 14
    assert not any(row["Speed-up"] or row["Time, 1 rank (ms)"] for row in rows)
    assert all(float(row["Time (ms)"]) > 0 for row in rows)
    assert TABLES["weak"](without, "auto").rows == []
    assert figure_efficiency.efficiency(without, "ring").axes == []


def test_a_case_without_a_time_is_a_row_and_no_line(laptop, nothing):
    rows = _rows(TABLES["strong"](nothing, "auto"))
    assert {(row["Time (ms)"], row["Waiting"]) for row in rows} == {("unsupported", "")}
    assert TABLES["traffic"](nothing, "auto").rows == []
    failed = (laptop["system"] == "ring-striped/p2") & (laptop["seq_len"] == 8192)
    frame = laptop.assign(status=laptop["status"].mask(failed, "failed"))
    (ax,) = figure_efficiency.efficiency(frame, "ring").axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert "Ring, zigzag, 8K" in labels and "Ring, striped, 8K" not in labels


def test_a_peer_that_gave_wrong_results_is_shown_with_the_reason(both):
    wrong = both["system"] == "torch-context-parallel-alltoall/p2"
    reason = "output: 7.1 times the error of dense attention"
    frame = both.assign(
        status=both["status"].mask(wrong, "failed"), reason=both["reason"].mask(wrong, reason)
    )
    rows = _rows(TABLES["peers"](frame, synthetic.CPU))
    rows = [row for row in rows if row["System"] == "PyTorch context_parallel, rotating"]
    assert {(row["Time (ms)"], row["Outcome"]) for row in rows} == {("failed", reason)}
    assert not any(row["Ours faster by"] for row in rows)
    assert all(float(row["Ours (ms)"]) > 0 for row in rows)


def test_one_device_without_records_keeps_the_published_figures(laptop):
    rows = _rows(TABLES["single"](_of(laptop, "ring-distributed/p2"), "auto"))
    assert len(rows) == 15
    assert {row["Time (ms)"] for row in rows} == {""}
    assert [row["Tokens/s published"] for row in rows if row["Tokens/s published"]] == [
        "304,971", "120,516", "21,416",
    ]  # fmt: skip


# --- A few, by hand ------------------------------------------------------------------------------


def test_known_bytes_give_a_known_share_in_table_and_figure(laptop):
    one = _of(laptop, "ring-striped/p2")
    one = one[one["seq_len"] == 8192].assign(bytes_sent=3.0 * 2**20, messages_sent=5.0)
    (row,) = _rows(TABLES["traffic"](one, "auto"))
    # One hop of keys and values of 4096 tokens, 8 heads of 64 in four bytes: 16 MiB.
    assert (float(row["Sent (KiB)"]), float(row["Dense formula (KiB)"])) == (3072, 16384)
    assert (row["Share"], row["Messages"]) == ("18.8 %", "5")
    (ax,) = figure_traffic.traffic(one, "ring").axes
    assert ax.get_title(loc="left") == f"{synthetic.CPU_NAME}, 2 ranks, counted"
    assert [bar.get_width() for bar in ax.patches] == [18.75]
    assert _texts(ax) == ["19 %, 3 MiB"]
    assert [list(line.get_xdata()) for line in ax.lines] == [[100, 100]]


def test_two_records_are_one_bar_of_efficiency(laptop):
    two = _of(laptop, "ring-standard", "ring-standard/p2")
    two = two[(two["seq_len"] == 8192) & two["is_causal"]]
    assert len(two) == 2
    (ax,) = figure_efficiency.efficiency(two, "ring").axes
    assert ax.get_title(loc="left") == f"{synthetic.CPU_NAME}, float32, 2 ranks"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Ring, contiguous, 8K"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([50 * 2**GAIN])
    assert _texts(ax) == [f"{50 * 2**GAIN:.0f} %, 20 % waiting"]
    # Too little waiting is not said.
    (ax,) = figure_efficiency.efficiency(two.assign(wait_share=0.004), "ring").axes
    assert _texts(ax) == [f"{50 * 2**GAIN:.0f} %"]


def test_modelled_lines_are_the_models_numbers(laptop):
    figure = figure_model.model(_of(laptop, "dense"), "ring")
    ax = _panel(figure, "modelled, InfiniBand", "1M tokens over p ranks")
    assert {system.name for system in cost_model.SYSTEMS} <= set(_texts(ax))
    ideal, dense = ax.lines[:2]
    assert list(ideal.get_ydata()) == list(ideal.get_xdata()) == [2**k for k in range(13)]
    totals = [
        cost_model.cost(cost_model.dense(2.0**20, 2**k), cost_model.NOMINAL, cost_model.INFINIBAND)
        for k in range(13)
    ]
    assert list(dense.get_ydata()) == pytest.approx([totals[0].total / c.total for c in totals])
    # 32K tokens per rank are above the break-even shard: a dense ring hardly waits.
    waiting = _panel(figure, "modelled, InfiniBand", "32K tokens per rank")
    assert max(waiting.lines[0].get_ydata()) < 1
    for name, draw in FIGURES.items():
        modelled_there = any("modelled" in title for title in _titles(draw(laptop, "ring")))
        assert modelled_there == (name == "model")


def test_the_rate_of_the_model_is_measured_where_there_is_a_gpu(both):
    note = " ".join(figure_model.model(both, "ring", synthetic.GPU).texts[-1].get_text().split())
    # The longest dense record that has a time: 128K timed out.
    rate = 1000 * (4 * 8 * 64 * 32768 * 32769 / 2) / ((0.3 + 12 * 32**2) / 40) / 1e12
    assert f"{rate:.0f} TFLOP/s per device as measured on one" in note
    assert "nominal" not in note
