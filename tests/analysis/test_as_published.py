"""The analysis of replicas: three columns from the right records, and what is multiplied."""

import math

import pytest

from analysis import catalogue
from analysis.experiments.as_published import views as replica_views
from analysis.records import frame as records
from analysis.selection import published
from tests.analysis import synthetic, synthetic_replicas

EXPERIMENT = replica_views.EXPERIMENT


@pytest.fixture(scope="module")
def view(laptop):
    return replica_views.view(laptop)


@pytest.fixture(scope="module")
def numbers(numbers_of):
    found = numbers_of("laptop", EXPERIMENT)
    return {key.removeprefix(f"{EXPERIMENT}."): value for key, value in found.items()}


def _median(variant, seq_len, head_dim=64, causal=False, sparsity=None):
    return next(
        synthetic.median_ms(case, synthetic.CPU)
        for case in synthetic.cases(EXPERIMENT, "laptop")
        if (case.variant, case.seq_len, case.head_dim) == (variant, seq_len, head_dim)
        and (case.is_causal, case.sparsity) == (causal, sparsity)
        and case.batch == 1
    )


def _cell(made, row, column):
    return made.rows[row][made.columns.index(column)]


def test_three_columns_come_from_their_own_pairs(numbers):
    key = "three.dilated-sdpa.n8192"
    assert numbers[f"{key}.published"]["text"] == "10.82"
    replica = _median("published-head-partition", 8192) / _median("published-over-heads", 8192)
    assert numbers[f"{key}.replica"]["value"] == pytest.approx(replica)
    exact = _median("dilated-gather", 8192) / _median("dilated-sdpa", 8192)
    assert numbers[f"{key}.exact"]["value"] == pytest.approx(exact)
    assert len(numbers[f"{key}.exact"]["records"]) == 2 * synthetic.ROUNDS
    assert numbers["three.ring-dilated.n8192.published"]["text"] == "17.22"
    assert numbers["three.ring-dilated.n8192.replica"]["value"] == pytest.approx(replica)
    key = "three.block-sparse@90.n8192"
    dense, eager = _median("dense", 8192), _median("dense-eager", 8192)
    own = _median("block-sparse-sdpa", 8192, sparsity=0.9)
    sums = _median("published-block-sums", 8192, sparsity=0.9)
    assert numbers[f"{key}.replica"]["value"] == pytest.approx(eager / sums)
    assert numbers[f"{key}.exact"]["value"] == pytest.approx(eager / own)
    assert numbers[f"{key}.over_dense"]["value"] == pytest.approx(dense / own)


def test_the_table_of_speed_ups_has_a_line_a_published_figure(laptop):
    made = catalogue.tables(EXPERIMENT)["speedups"](laptop, "auto")
    assert [row[3] for row in made.rows].count("–") == 0
    assert len(made.rows) == 3 * 2 + 3 * 3
    assert _cell(made, 0, "Speed-up published") == "1.07"


def test_a_replicas_deviation_is_its_records(numbers):
    rms, zeros, low, high, others, future = synthetic_replicas.KNOWN["published-block-sums"]
    key = "deviation.block-sums"
    assert numbers[f"{key}.exact"]["text"] == "Block-Sparse"
    assert numbers[f"{key}.relative_rms"]["value"] == rms
    assert (numbers[f"{key}.weight_sum_low"]["value"], zeros) == (low, 0.0)
    assert numbers[f"{key}.of_future_tokens"]["value"] == future
    assert numbers["deviation.over-heads.zero_rows"]["text"] == "37.5 %"
    # What was not finite is an en dash.
    assert numbers["deviation.signed-sum.relative_rms"]["text"] == "–"


def test_records_of_exact_systems_have_no_deviation(laptop):
    rows = records.of_experiment(laptop, EXPERIMENT)
    exact = rows[~rows["variant"].isin(replica_views.REPLICAS)]
    assert exact["deviation_variant"].isna().all() and exact["calls_first_ms"].isna().all()
    own = rows[rows["variant"].isin(replica_views.REPLICAS)]
    assert own["deviation_variant"].notna().all() and own["calls_kept_bytes"].notna().all()


def test_the_plots_are_told_apart_by_their_rates(view):
    curves = {(c.rates, c.variant): c for c in replica_views.curves(view)}
    made = curves["as made", replica_views.SUMS]
    meant = curves["as meant", replica_views.SUMS]
    assert [row["seq_len"] for row in made.rows] == [1024, 2048, 4096, 8192, 32768]
    assert made.rows[-1]["dilation_rates"] == (1, 2, 8, 128)
    assert meant.rows[-1]["dilation_rates"] == (1, 2, 4, 8)
    assert len(curves["as meant", "dilated-sdpa"].rows) == 5
    shares = [made.model(row) for row in made.rows]
    assert shares == pytest.approx([1, 0.625, 0.406, 0.391, 0.391], abs=5e-4)
    assert meant.model(meant.rows[-1]) == pytest.approx(0.469, abs=5e-4)
    assert made.rows[0]["path"] == meant.rows[0]["path"]
    rates = replica_views.largest(view, replica_views.SUMS)["dilation_rates"]
    assert rates == (1, 2, 8, 128)  # of two cases at the longest length


def test_without_the_shortest_length_there_is_no_share(laptop):
    longer = laptop[~((laptop["head_dim"] == 8) & (laptop["seq_len"] == 1024))]
    assert replica_views.curves(replica_views.view(longer)) == []
    made = catalogue.tables(EXPERIMENT)["plots"](longer, "auto")
    assert made.rows == []


def test_a_billion_is_a_chunk_multiplied_and_says_so(laptop, numbers):
    made = catalogue.tables(EXPERIMENT)["billion"](laptop, "auto")
    assert "no measurements of that length" in made.note
    median = _median("published-over-heads", 4096)
    last = dict(zip(made.columns, made.rows[-1], strict=True))
    assert last["Tokens"] == "1,073,741,824" and last["Time published (s)"] == "8,186.4"
    assert last["Warm call × multiplier (s)"].value == pytest.approx(262144 * median / 1e3)
    first = synthetic_replicas.COLD * median
    assert last["First call × multiplier (s)"] == pytest.approx(262144 * first / 1e3)
    assert numbers["billion.replica"]["value"] == pytest.approx(262144 * first / 1e3)
    assert numbers["billion.published.chunk"]["value"] == pytest.approx(31.2, abs=0.05)
    assert last["Exact, one sequence (s)"] is None  # a laptop streams 4M at most


def test_real_sequences_stand_beside_the_multiplied_chunk(laptop, numbers_of):
    rows = laptop[(laptop["experiment"] == "extreme") & (laptop["seq_len"] == 2**20)]
    kept = rows[(rows["variant"] == "dilated-streamed") & rows["segment_lengths"].map(_stays)]
    made = catalogue.tables(EXPERIMENT)["billion"](laptop, "auto")
    cells = {row[0]: row[-1] for row in made.rows}
    assert cells["1,048,576"].value == pytest.approx(kept.iloc[0]["median_ms"] / 1e3)
    assert cells["131,072"] is None
    found = numbers_of("laptop", EXPERIMENT)
    assert found[f"{EXPERIMENT}.billion.exact.tokens"]["text"] == "4,194,304"
    without = laptop[laptop["experiment"] != "extreme"]
    made = catalogue.tables(EXPERIMENT)["billion"](without, "auto")
    assert {row[-1] for row in made.rows} == {None}


def _stays(lengths):
    return lengths is not None and max(lengths) < 2**20


def test_what_is_alive_is_the_output(laptop, numbers):
    made = catalogue.tables(EXPERIMENT)["memory"](laptop, "auto")
    by = [dict(zip(made.columns, row, strict=True)) for row in made.rows]
    assert [row["Published (MiB)"] for row in by] == ["11.1", "12.0", "48.0"]
    assert [row["Output, published type"] for row in by] == [3, 12, 48]
    assert (by[1]["Output here"], by[1]["Alive after"], by[1]["Output let go"]) == (24, 24, 0)
    assert by[2]["Alive after"] is None  # batch 4 of 8192 is the gpu tier's
    assert numbers["memory.b2.n4096.alive"]["text"] == "24"


def test_the_first_call_is_charged_the_workspace(laptop, numbers):
    assert numbers["first.more"]["value"] == pytest.approx(synthetic_replicas.WORKSPACE)
    assert numbers["first.published"]["value"] == pytest.approx(8.125)
    assert numbers["first.slower"]["value"] == pytest.approx(synthetic_replicas.COLD)
    made = catalogue.tables(EXPERIMENT)["first-call"](laptop, "auto")
    assert _cell(made, 0, "Difference published (MiB)") == pytest.approx(8.125)
    assert math.isclose(_cell(made, 1, "Difference (MiB)"), synthetic_replicas.WORKSPACE)


def test_the_figure_draws_three_marks_a_line(laptop):
    left, right = catalogue.figures(EXPERIMENT)["speedups"](laptop, EXPERIMENT).axes
    assert [bars.get_label() for bars in left.containers] == ["published", "replica", "exact"]
    assert [len(bars.lines[0].get_xdata()) for bars in left.containers] == [6, 6, 6]
    assert 17.22 in left.containers[0].lines[0].get_xdata()
    assert [len(bars.lines[0].get_xdata()) for bars in right.containers] == [9, 9, 9]
    assert [t.get_text() for t in right.get_yticklabels()][0] == "Block-sparse 90 %, 2K"


def test_a_number_read_off_a_plot_is_looked_up_by_plot_and_quantity():
    assert published.plot_value("overview", "64m", "time_share") == 0.64
    for asked in (("overview", "65m", "time_share"), ("overview", "64m", "time")):
        with pytest.raises(published.NotKnown, match="expected one of .*128m"):
            published.plot_value(*asked)
