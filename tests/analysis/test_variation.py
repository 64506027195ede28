"""The figure of rounds: what it draws is what was put into the synthetic rounds."""

import csv
import io
import math

import pytest

from analysis.across.variation import deviations, variation
from analysis.records import frame as records
from analysis.rendering import figure_csv
from experiments.rounds import record_files
from tests.analysis import synthetic

Y = "in the round over mean"


def _rows(figure):
    return list(csv.DictReader(io.StringIO(figure_csv.to_csv(figure))))


def test_every_case_is_off_by_what_its_round_was_made_to_be(laptop):
    found = deviations(laptop, synthetic.CPU)
    timed = laptop[laptop["rounds"] == synthetic.ROUNDS].drop_duplicates("path")
    assert len(found) == len(timed)
    times = [one.time_ms for one in found]
    assert times == sorted(times)
    for one in found:
        off = [one.time[at] for at in sorted(one.time)]
        assert off[1] == pytest.approx(0, abs=1e-9) and off[0] == pytest.approx(-off[2])
        assert abs(off[2] - 0.02) <= synthetic.OWN
    ratios = [one.ratio for one in found if one.ratio]
    assert len(ratios) > 100
    assert max(abs(x) for one in ratios for x in one.values()) <= 2 * synthetic.OWN


def test_the_figure_draws_times_and_ratios_by_round_and_says_how_far_apart(laptop):
    figure = variation(laptop)
    rows = _rows(figure)
    found = deviations(laptop, synthetic.CPU)
    names = [synthetic.round_name(number) for number in (1, 2, 3)]
    for panel, word in (
        ("time, 2-core Maker Model", "time"),
        ("speed-up over dense attention", "ratio"),
    ):
        own = [row for row in rows if row["panel"] == panel]
        for name in names:
            drawn = [float(row[Y]) for row in own if row["series"] == name]
            logs = [
                value
                for one in found
                for at, value in getattr(one, word).items()
                if at.round == name
            ]
            assert drawn == pytest.approx([math.exp(value) for value in logs])
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    deviation = [float(text.split(" % between occasions")[0].split()[-1]) for text in said]
    assert 1.8 < deviation[0] < 2.3 and deviation[1] < 0.7


def test_of_one_round_it_says_so(laptop_root):
    name = synthetic.round_name(1)
    (folder,) = {path.parent for path in record_files(laptop_root) if path.parent.name == name}
    figure = variation(records.load(folder))
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == ["one round"] * 2
    assert _rows(figure) == []
