"""The figure of the drift gauge: each part over its median, round by round."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from analysis.across import gauges
from experiments import gauge
from tests.analysis import synthetic

START = datetime(2026, 11, 28, 12, tzinfo=UTC)


def of(dense: float) -> dict:
    return {"dense_ms": dense, "matmul_ms": 2.0, "copy_ms": 8.0}


@pytest.fixture(scope="module")
def frame(both):
    """Three cases of one machine, in two rounds, in no order; the last twice as slow."""
    rows = both[both["machine"] == synthetic.CPU].drop_duplicates("path").head(3)

    def taken(number):
        return tuple(
            (
                round_,
                START + timedelta(minutes=number + hours * 60),
                {"before": of(9), "after": after},
            )
            for round_, hours, after in (
                ("round-1", 0, of(4.0 if number == 0 else 2.0)),
                ("round-2", 5, of(3.0)),
            )
        )

    return rows.assign(gauges=pd.Series([taken(n) for n in (2, 0, 1)], rows.index))


def test_the_bound_is_that_of_the_measuring():
    assert gauges.BOUND == gauge.BOUND


def test_gauges_are_in_the_order_of_time(frame):
    found = gauges.gauges_of(frame, synthetic.CPU)
    assert list(found) == ["round-1", "round-2"]
    assert list(found["round-1"]["minutes"]) == [0, 1, 2]
    assert list(found["round-1"]["dense_ms"]) == [4.0, 2.0, 2.0]
    assert list(found["round-2"]["copy_ms"]) == [8.0] * 3


def test_each_part_is_drawn_over_its_median(frame):
    figure = gauges.gauges(frame, synthetic.CPU)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "round-1, 2-core Maker Model",
        "round-2, 2-core Maker Model",
    ]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["dense attention"].get_ydata()) == [2.0, 1.0, 1.0]
    assert list(lines["copy"].get_ydata()) == [1.0, 1.0, 1.0]
    low, high = figure.axes[0].get_ylim()
    assert low < 0.8 and high > 2


def test_a_machine_without_gauges_says_so(both):
    (text,) = gauges.gauges(both, synthetic.CPU).texts
    assert text.get_text() == "no gauge was read here"
