"""`extreme`: what stays the same with the length, and what is extrapolated and says so."""

import csv
import io

import numpy as np
import pytest

from analysis import catalogue
from analysis.experiments.extreme import views as extreme_views
from analysis.records import frame as records
from tests.analysis import synthetic

LONGEST, SHORTEST = 4194304, 65536


def _rows(frame, name) -> list[dict]:
    made = catalogue.tables("extreme")[name](frame, "auto")
    return list(csv.DictReader(io.StringIO(made.to_csv())))


def _ms(n: int, scale: float = 10.0) -> float:
    return 0.3 + scale * n / 1024


def _dense_ms(n: int) -> float:
    return 0.3 + 12.0 * (n / 1024) ** 2


def test_streamed_passes_by_length(laptop):
    rows = _rows(laptop, "lengths")
    assert [row["Tokens"] for row in rows] == 2 * ["64K", "256K", "1M", "4M"]
    assert [row["Schedule"] for row in rows[3:5]] == ["same segments", "longest segment = n"]
    last = rows[3]
    assert float(last["Time (s)"]) == pytest.approx(_ms(LONGEST) / 1000)
    assert float(last["Tokens/s"]) == pytest.approx(LONGEST / _ms(LONGEST) * 1000)
    ratio = (_ms(LONGEST) / LONGEST) / (_ms(SHORTEST) / SHORTEST)
    assert float(last["Time per token, over the shortest"]) == pytest.approx(ratio)
    # The middle one of the samples and of the times in the source are of other repeats.
    assert float(last["Source (s)"]) == pytest.approx(_ms(LONGEST) / 4000)
    assert last["Memory, over the shortest"] == "1.000"
    assert rows[0]["Time per token, over the shortest"] == ""
    assert float(last["Error, over plain"]) == pytest.approx(1.15)


def test_dense_attention_is_called_extrapolated_past_what_was_measured(laptop):
    rows = {row["Tokens"]: row for row in _rows(laptop, "dense")}
    assert [rows[n]["Dense is"] for n in ("64K", "256K", "4M")] == [
        "measured",
        "extrapolated",
        "extrapolated",
    ]
    last = rows["4M"]
    assert float(last["Dense (s)"]) == pytest.approx(_dense_ms(LONGEST) / 1000, rel=0.02)
    low, value, high = (float(last[f"Dense (s){end}"]) for end in (" low", "", " high"))
    assert low < value < high
    over = float(last["Dense over streamed"])
    assert over == pytest.approx(_dense_ms(LONGEST) / _ms(LONGEST), rel=0.02)
    assert rows["32K"]["Streamed (s)"] == ""


def test_ways_to_read_beside_one_piece(laptop):
    rows = _rows(laptop, "sources")
    assert len(rows) == 8
    mapped = next(row for row in rows if "mapped" in row["System"] and row["Tokens"] == "64K")
    piece = 0.3 + 9.0 * (SHORTEST / 1024) ** 1.55
    assert float(mapped["Over one piece"]) == pytest.approx(_ms(SHORTEST, 11.0) / piece)
    assert float(mapped["Memory (MiB)"]) == pytest.approx(300 * 1.004)
    assert rows[3]["Over one piece"] == "" and rows[3]["Source (ms)"] == ""


def test_numbers_for_the_prose(numbers_of):
    found = numbers_of("laptop", "extreme")
    assert found["extreme.same.longest.tokens"]["text"] == "4M"
    assert found["extreme.same.longest.tokens.exact"]["text"] == "4,194,304"
    assert found["extreme.same.longest.rate"]["value"] == pytest.approx(
        1000 * LONGEST / _ms(LONGEST)
    )
    assert found["extreme.same.memory_ratio"]["value"] == 1.0
    assert found["extreme.same.per_token"]["low"] < 1 < found["extreme.same.per_token"]["high"]
    assert found["extreme.global.longest.tokens"]["text"] == "4M"
    assert found["extreme.dense.longest"]["value"] == 65536
    hours = found["extreme.dense.extrapolated"]
    assert hours["value"] == pytest.approx(_dense_ms(LONGEST) / 3.6e6, rel=0.02)
    # Six cases of dense attention, and the streamed pass.
    assert len(hours["records"]) == 7 * synthetic.ROUNDS
    empty = numbers_of("nothing", "extreme")
    assert set(empty) == set(found)
    ours = [key for key in empty if key.startswith(("extreme.same.", "extreme.dense."))]
    assert len(ours) > 20 and all(empty[key]["value"] is None for key in ours)


def test_a_machine_without_a_streamed_pass_has_tables_of_nothing(nothing):
    for name in ("lengths", "dense", "sources"):
        assert catalogue.tables("extreme")[name](nothing, "auto").rows == []


def test_the_figure_draws_the_continuation_dashed_from_the_last_measured_length(laptop):
    figure = catalogue.figures("extreme")["passes"](laptop, "extreme")
    time, memory = figure.axes
    dashed = [line for line in time.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1
    assert dashed[0].get_xdata()[[0, -1]] == pytest.approx([65536, LONGEST])
    n = dashed[0].get_xdata()
    assert dashed[0].get_ydata() == pytest.approx([_dense_ms(x) / 1000 for x in n], rel=0.03)
    whole = next(line for line in memory.lines if line.get_linestyle() == "--")
    assert whole.get_ydata()[-1] == LONGEST * 4 * 8 * 64 * 4 / 2**20


def test_the_setting_is_that_of_the_longest_streamed_case(both):
    one = extreme_views.extreme(both, synthetic.GPU)
    assert set(one.rows["dtype"]) == {"float16"}
    assert one.streamed()["seq_len"].max() == 2**30
    assert one.dense_at(2**30)[1] and not one.dense_at(65536)[1]
    assert records.reporting_machine(both) == synthetic.GPU
    assert np.isfinite(one.dense_at(2**30)[0].high)
