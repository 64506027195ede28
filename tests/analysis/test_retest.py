"""Measured again: what is held is told from rounds that are known."""

import csv
import io
import json
import math
import shutil
from dataclasses import replace

import pytest

from analysis.across.retest import LEAST, NONE, retest
from analysis.findings.retests import Retest, elsewhere, entries, retests
from analysis.records import frame as records
from analysis.rendering import figure_csv
from analysis.statistics.intervals import Interval
from experiments.rounds import record_files
from tests.analysis import synthetic


def _with_rounds(root, out, wanted):
    """A copy of the rounds of `root` by number; 4 is 3 again, a day later."""
    for path in record_files(root):
        number = int(path.parent.name[9])
        for to in wanted:
            if number == min(to, 3):
                target = out / path.parents[1].name / synthetic.round_name(to) / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                if to == number:
                    shutil.copy(path, target)
                else:
                    began = {"started_at": f"2026-01-0{to}T03:04:05Z"}
                    target.write_text(json.dumps({**json.loads(path.read_text()), **began}))
    return records.load(out)


@pytest.fixture(scope="module")
def laptop_alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone") / "published"
    return synthetic.write(root, "comprehensive")


def test_a_retest_is_held_within_the_interval_alone():
    first = Interval(2.0, 1.0, 4.0, 0.95)
    assert Retest(first, 3.9).is_held and not Retest(first, 4.1).is_held
    assert Retest(first, 1.0).off == pytest.approx(-math.log(2))
    assert Retest(first, 1.0).half == pytest.approx(math.log(2))


def _logs(frame, number):
    """Log of the speed-up over dense attention in a round, of each system's rows in order."""
    name, rows = synthetic.round_name(number), frame.drop_duplicates("path")
    own = [
        (row, one.log_median)
        for _, row in rows.iterrows()
        for one in row["samples"]
        if one.round == name
    ]
    shape = ["seq_len", "batch"]
    dense = {tuple(row[shape]): log for row, log in own if row["system"] == "dense"}
    return [dense[tuple(row[shape])] - log for row, log in own if row["system"] != "dense"]


def test_the_third_round_is_set_beside_the_first_two(laptop_alone):
    frame = records.load(laptop_alone)
    found = retests(frame, synthetic.CPU)
    assert found.hours == 24 and found.rounds == (2, 1)
    logs = [_logs(frame, number) for number in (1, 2, 3)]
    for one, a, b, c in zip(found.found, *logs, strict=True):
        assert math.log(one.first.value) == pytest.approx((a + b) / 2)
        assert math.log(one.again) == pytest.approx(c)
    assert found.held == sum(abs(one.off) <= one.half for one in found.found)


def test_each_part_is_set_beside_the_nearest_occasion_of_the_other(laptop_alone, tmp_path):
    frame = _with_rounds(laptop_alone, tmp_path, (1, 2, 3, 4))
    found = retests(frame, synthetic.CPU)
    assert found.rounds == (2, 2) and found.hours == 24
    half = len(found.found) // 2
    for number, (first, again) in enumerate([((1, 2), 3), ((3, 4), 2)]):
        part = found.found[half * number : half * (number + 1)]
        logs = [_logs(frame, one) for one in (*first, again)]
        for one, a, b, c in zip(part, *logs, strict=True):
            assert math.log(one.first.value) == pytest.approx((a + b) / 2)
            assert math.log(one.again) == pytest.approx(c)


def test_the_cut_is_where_occasions_lie_furthest_apart(laptop_alone, tmp_path):
    days = {1: 1, 2: 2, 3: 9}
    for path in record_files(laptop_alone):
        target = tmp_path / path.relative_to(laptop_alone.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        record = json.loads(path.read_text())
        day = days[int(path.parent.name[9])]
        target.write_text(json.dumps(record | {"started_at": f"2026-01-{day:02}T03:04:05Z"}))
        if day == 9:
            again = target.parents[1] / synthetic.round_name(4) / target.name
            again.parent.mkdir(exist_ok=True)
            again.write_text(json.dumps(record | {"started_at": "2026-01-10T03:04:05Z"}))
    found = retests(records.load(synthetic.vouch(tmp_path / "published")), synthetic.CPU)
    assert found.rounds == (2, 2) and found.hours == 7 * 24


def test_rounds_of_one_occasion_are_one_part(laptop_alone, tmp_path):
    times = {1: "2026-01-01T03:04:05Z", 2: "2026-01-01T04:04:05Z", 3: "2026-01-01T07:04:05Z"}
    for path in record_files(laptop_alone):
        began = {"started_at": times[int(path.parent.name[9])]}
        round_ = began["started_at"].replace(":", "")
        target = tmp_path / laptop_alone.name / synthetic.CPU / round_ / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({**json.loads(path.read_text()), **began}))
    frame = records.load(synthetic.vouch(tmp_path / laptop_alone.name))
    found = retests(frame, synthetic.CPU)
    assert found.rounds == (2, 1) and found.hours == 3 and found.found
    assert set(frame["occasions"]) == {2}


def test_intervals_of_one_host_are_set_beside_another(laptop_alone, tmp_path):
    other = replace(synthetic._HOST, family=26)
    for path in record_files(laptop_alone):
        target = tmp_path / path.relative_to(laptop_alone.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        record = json.loads(path.read_text())
        if path.parent.name == synthetic.round_name(3):
            record["machine"]["host"] = other.to_json()
        target.write_text(json.dumps(record))
    frame = records.load(synthetic.vouch(tmp_path / "published"))
    found = elsewhere(frame, synthetic.CPU)
    assert found.rounds == (2, 1) and found.hours == 24
    logs = [_logs(frame, number) for number in (1, 2, 3)]
    for one, a, b, c in zip(found.found, *logs, strict=True):
        assert math.log(one.first.value) == pytest.approx((a + b) / 2)
        assert math.log(one.again) == pytest.approx(c)
    assert found.share == 100 * found.held / len(logs[0])
    told = entries(frame)
    assert told["retest.elsewhere"]["value"] == found.share
    assert told["retest.elsewhere_rounds"]["value"] == 2
    assert told["retest.elsewhere_again"]["value"] == 1
    assert told["retest.elsewhere_intervals"]["value"] == len(found.found)
    (ax,) = retest(frame).axes
    assert ax.get_title(loc="left").endswith(": 2 rounds of one host, and one round of another")
    assert f"of {len(found.found)} intervals" in ax.texts[0].get_text()
    assert elsewhere(records.load(laptop_alone), synthetic.CPU).found == ()


def test_two_rounds_say_nothing(laptop_alone, tmp_path):
    frame = _with_rounds(laptop_alone, tmp_path, (1, 2))
    assert retests(frame, synthetic.CPU).found == ()
    assert [one["value"] for one in entries(frame).values()] == [None] * 7
    (said,) = retest(frame).texts
    assert said.get_text() == NONE


def test_the_figure_draws_each_and_says_how_many_are_held(laptop_alone):
    frame = records.load(laptop_alone)
    figure = retest(frame)
    found = retests(frame, synthetic.CPU)
    rows = list(csv.DictReader(io.StringIO(figure_csv.to_csv(figure))))
    for series, is_held in (("held", True), ("not held", False)):
        drawn = [
            float(row["measured again, off by (%)"]) for row in rows if row["series"] == series
        ]
        own = [100 * math.expm1(abs(one.off)) for one in found.found if one.is_held == is_held]
        assert drawn == pytest.approx([max(one, LEAST) for one in own])
    share = 100 * found.held / len(found.found)
    assert entries(frame)["retest.share"]["value"] == pytest.approx(share)
    (said,) = figure.axes[0].texts
    assert said.get_text().startswith(f"{share:.3g} % of {len(found.found)} intervals hold")
