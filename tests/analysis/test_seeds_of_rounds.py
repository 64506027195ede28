"""Seeds of several rounds: which count, what their interval is, and whether rounds differ."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.experiments.quality import views as quality_views
from analysis.records import files, learnt
from analysis.records import frame as frames
from analysis.selection import views
from analysis.statistics import seeds
from experiments.case import Case
from experiments.training.case import TrainingCase
from experiments.training.recipes import RECIPES
from tests.analysis import synthetic
from tests.analysis.quality_cases import MAIN, TEXT, branched, case, load

DENSE, DILATED = case("dense", *TEXT), branched(TEXT, MAIN)
AGAIN = RECIPES[TEXT[0]].seeds
OTHER_TEXT = 64 * "b"
PUBLISHED = Path("results/published")


def write(root, made, number, change=lambda record: None, status="ok"):
    """A record of a case in a round, changed."""
    record = synthetic.record(made, "laptop", synthetic.CPU, status, number)
    change(record)
    synthetic.place(root, record, number).write_text(json.dumps(record))


def on_another_host(record):
    record["machine"]["host"] = replace(synthetic._HOST, family=26).to_json()


def of_other_text(record):
    record["learning"]["sha256"] = OTHER_TEXT


def of_other_code(record):
    record["software"]["code_digest"] = "deadbeef" * 2


def row_of(frame, variant):
    (found,) = (row for _, row in frame.iterrows() if row["variant"] == variant)
    return found


def test_seeds_of_all_rounds_and_hosts_have_one_interval(tmp_path, monkeypatch):
    """Four seeds of two rounds: t of 3 degrees, and as many more as a round has."""
    for made in (DENSE, DILATED):
        write(tmp_path / "published", made, 1)
        write(tmp_path / "published", made, 2, on_another_host)
    frame = load(tmp_path / "published", monkeypatch)
    row, base = row_of(frame, "dilated-sdpa"), row_of(frame, "dense")
    assert (row["rounds"], row["hosts"]) == (2, 2)
    values = learnt.values(row)
    assert [one.seed for one in row["trainings"]] == [1000, 1001, 2000, 2001]
    found = learnt.interval(row)
    half = stats.t.ppf(0.975, 3) * np.sqrt(np.var(values, ddof=1) * (1 / 4 + 1 / AGAIN))
    assert (found.value, found.high - found.value) == pytest.approx((np.mean(values), half))
    whole = learnt.difference(row, base)
    assert whole == seeds.difference(values, learnt.values(base), AGAIN)


def test_a_round_that_one_case_lacks_leaves_the_other_its_seeds(tmp_path, monkeypatch):
    root = tmp_path / "published"
    for made in (DENSE, DILATED):
        write(root, made, 1)
    write(root, DENSE, 2)
    write(root, DILATED, 2, status="timeout")
    frame = load(root, monkeypatch)
    counts = {row["variant"]: len(row["trainings"]) for _, row in frame.iterrows()}
    assert counts == {"dense": 4, "dilated-sdpa": 2}
    (lesson,) = quality_views.lessons(views.view(frame, "quality"))
    assert lesson.seeds == (2, 4)


@pytest.mark.parametrize("change", [of_other_text, of_other_code])
def test_seeds_by_other_code_or_of_other_text_are_not_added(tmp_path, monkeypatch, change):
    """The newest round counts, and what no newer one has stays, beside nothing of the other."""
    root = tmp_path / "published"
    for made in (DENSE, DILATED):
        write(root, made, 1)
    write(root, DENSE, 2, change)
    frame = load(root, monkeypatch)
    row = row_of(frame, "dense")
    assert [one.seed for one in row["trainings"]] == [2000, 2001] and row["rounds"] == 1
    assert len(row_of(frame, "dilated-sdpa")["trainings"]) == 2
    if change is of_other_text:
        lessons = quality_views.lessons(views.view(frame, "quality"))
        assert [len(one.learners) for one in lessons] == [1, 1]


def test_published_rounds_of_a_case_differ_by_no_more_than_their_seeds():
    """What is assumed when seeds of rounds are one sample: a training follows from its seed.

    One-way analyses of variance, a case each, joined by Fisher's method. None may say otherwise by
    less than one in a thousand.
    """
    counting = files.counting(files.read(PUBLISHED))
    chances = []
    for (_, made), found in counting.items():
        rounds = [
            [one.evaluations[-1].loss for one in trainings]
            for file in found
            if (trainings := [x for r in file.record.replicates for x in r.trainings or ()])
        ]
        if len(rounds) > 1:
            assert all(len(own) == RECIPES[made.recipe].seeds for own in rounds)
            chances.append(stats.f_oneway(*rounds).pvalue)
    if not chances:
        pytest.skip("no case was trained in several published rounds")
    assert stats.combine_pvalues(chances).pvalue > 1e-3


def test_times_of_trainings_say_nothing_of_passes(monkeypatch):
    """What steps of trainings vary by would widen the interval of every attention."""
    spread, kinds = frames._spread, []

    def noted(cases):
        kinds.append({type(case) for case in cases})
        return spread(cases)

    monkeypatch.setattr(frames, "_spread", noted)
    monkeypatch.setattr(frames, "kept", None)
    frames.of_files(files.read(PUBLISHED))
    assert {Case} in kinds and {TrainingCase} in kinds
    assert all(len(one) == 1 for one in kinds)
