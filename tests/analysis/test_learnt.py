"""What models learnt: columns of the frame, and values per seed by hand-made numbers."""

import json
import math
from dataclasses import fields

import pandas as pd
import pytest

from analysis.across import expected_trainings
from analysis.comparison import sides
from analysis.records import files, learnt
from analysis.records import frame as records
from analysis.statistics import seeds
from experiments import grid, rounds
from experiments.case import Case
from experiments.schema import Training
from experiments.training.recipes import RECIPES
from models.registry import VARIANTS
from tests.analysis import synthetic

RECIPE = "recall-smoke"
STEPS, SEEDS = RECIPES[RECIPE].training.steps, RECIPES[RECIPE].seeds
# By step: losses and accuracies of three seeds.
LOSSES = {2: [4.0, 5.0, 4.4], 8: [2.0, 3.0, 2.2]}
ACCURACIES = {2: [0.125, 0.25, 0.2], 8: [0.5, 0.75, 1.0]}


def _training(place):
    evaluations = [
        {"step": step, "loss": LOSSES[step][place], "accuracy": ACCURACIES[step][place]}
        for step in LOSSES
    ]
    last = evaluations[-1]["loss"]
    parts = [
        {
            "first": first,
            "tokens": 10,
            "loss": last + change,
            "accuracy": 0.1 * first + 0.01 * place,
        }
        for first, change in ((1, 0.5), (4, -0.5))
    ]
    return Training.model_validate(
        {
            "seed": place,
            "steps": 8,
            "steps_s": 1.0,
            "step_losses": [1.0],
            "evaluations": evaluations,
            "tokens": 20,
            "by_position": parts,
            # The third found no answer so near.
            "by_distance": parts if place < 2 else parts[1:],
        }
    )


def _row(*places, flops=10.0):
    trainings = tuple(map(_training, places))
    return {"trainings": trainings, "useful_flops": flops, "recipe": RECIPE}


ALL, NONE = _row(0, 1, 2), _row()


def test_values_are_those_of_the_last_evaluation():
    assert learnt.values(ALL) == [2.0, 3.0, 2.2]
    assert learnt.values(ALL, learnt.ACCURACY) == [0.5, 0.75, 1.0]
    assert learnt.values(NONE) == []


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (2, [4.0, 5.0, 4.4]),
        (8, [2.0, 3.0, 2.2]),
        # Half-way in the logarithm of steps.
        (4, [3.0, 4.0, 3.3]),
        (2 * 4**0.25, [3.5, 4.5, 3.85]),
        # As FLOPs that were divided and multiplied again may be.
        (2 * (1 - 1e-12), [4.0, 5.0, 4.4]),
        (8 * (1 + 1e-12), [2.0, 3.0, 2.2]),
    ],
)
def test_values_at_flops_are_read_between_evaluations(steps, expected):
    assert learnt.values_at(ALL, 10.0 * steps) == pytest.approx(expected)
    # A step of three times the FLOPs is reached a third as soon.
    assert learnt.values_at(_row(0, 1, 2, flops=30.0), 30.0 * steps) == pytest.approx(expected)


def test_accuracies_are_read_so_too():
    found = learnt.values_at(ALL, 40.0, learnt.ACCURACY)
    assert found == pytest.approx([0.3125, 0.5, 0.6])


@pytest.mark.parametrize("flops", [1e-9, 19.9, 80.1, 1e12])
def test_before_the_first_evaluation_and_after_the_last_nothing_is_known(flops):
    assert learnt.values_at(ALL, flops) is None
    assert learnt.interval(ALL, at_flops=flops) is None
    assert learnt.difference(ALL, ALL, at_flops=flops) is None


def test_where_nothing_was_trained_nothing_is_known():
    assert learnt.values_at(NONE, 40.0) is None and learnt.interval(NONE) is None
    assert learnt.difference(ALL, NONE) is None and learnt.difference(NONE, ALL) is None
    assert learnt.by_range(NONE, "by_position", learnt.LOSS) == {}


def test_ranges_have_a_value_of_each_seed():
    assert learnt.by_range(ALL, "by_position", learnt.LOSS) == {
        1: pytest.approx([2.5, 3.5, 2.7]),
        4: pytest.approx([1.5, 2.5, 1.7]),
    }
    found = learnt.by_range(ALL, "by_distance", learnt.ACCURACY)
    assert found == {1: pytest.approx([0.1, 0.11]), 4: pytest.approx([0.4, 0.41, 0.42])}
    assert [*learnt.by_range(_row(2, 0), "by_distance", learnt.LOSS)] == [1, 4]


def test_the_flops_of_a_training_are_those_of_its_steps():
    assert learnt.flops(ALL) == 10.0 * STEPS
    assert learnt.equal_flops(ALL, _row(0, flops=7.0), _row(1, flops=11.0)) == 7.0 * STEPS


def test_an_interval_is_that_of_as_many_seeds_as_a_round_has():
    assert learnt.interval(ALL) == seeds.mean([2.0, 3.0, 2.2], SEEDS)
    assert learnt.interval(ALL).value == pytest.approx(2.4)
    # Variance 0.28 of three, and as many more as there are in a round: t of 2 degrees.
    half = 4.302652729911275 * math.sqrt(0.28 * (1 / 3 + 1 / SEEDS))
    assert learnt.interval(ALL).high - 2.4 == pytest.approx(half)
    assert learnt.interval(ALL, at_flops=40.0).value == pytest.approx(10.3 / 3)
    alone = learnt.interval(_row(1))
    assert (alone.value, alone.confidence) == (3.0, 0.0)


def test_a_difference_is_the_first_less_the_second():
    other = _row(0, 2, flops=5.0)
    found = learnt.difference(ALL, other)
    assert found == seeds.difference([2.0, 3.0, 2.2], [2.0, 2.2], SEEDS)
    assert found.value == pytest.approx(2.4 - 2.1)
    assert learnt.difference(other, ALL).value == pytest.approx(-0.3)
    # At equal FLOPs the cheaper one has done more steps: 8, and the other 4.
    at = learnt.difference(ALL, other, at_flops=40.0)
    assert at.value == pytest.approx(10.3 / 3 - 2.1)
    accuracy = learnt.difference(ALL, other, learnt.ACCURACY)
    assert accuracy.value == pytest.approx(0.75 - 0.75)


def test_an_interval_of_shares_ends_where_shares_do():
    """Of 0.5, 0.75 and 1: 0.75 give or take 0.98; of the loss nothing is cut at 1."""
    found = learnt.interval(ALL, learnt.ACCURACY)
    raw = seeds.mean([0.5, 0.75, 1.0], SEEDS)
    assert raw.low < 0 < 1 < raw.high
    assert (found.value, found.low, found.high, found.confidence) == (0.75, 0.0, 1.0, 0.95)
    assert learnt.of_seeds(ALL, [0.5, 0.75, 1.0], learnt.ACCURACY) == found
    assert learnt.interval(ALL).high == seeds.mean([2.0, 3.0, 2.2], SEEDS).high
    assert learnt.of_seeds(ALL, [0.1, 0.2, 3.0], learnt.LOSS).low == 0.0


def test_a_difference_of_shares_ends_at_one_share():
    """Both ends of it: a seed of 0.5 and one of 1 on each side leave all open."""
    two = _row(0, 2)
    raw = seeds.difference([0.5, 1.0], [0.5, 1.0], SEEDS)
    assert raw.low < -1 < 1 < raw.high
    found = learnt.difference(two, two, learnt.ACCURACY)
    assert (found.value, found.low, found.high) == (0.0, -1.0, 1.0)
    losses = learnt.difference(_row(0, 1), _row(0, 1))
    assert losses == seeds.difference([2.0, 3.0], [2.0, 3.0], SEEDS) and losses.low < -1


def _write(root, case, number, tier="smoke"):
    made = synthetic.record(case, tier, synthetic.CPU, number=number)
    trainings = expected_trainings.trainings(case, 1.0)
    made["replicates"][0]["trainings"] = [
        {**one, "seed": 100 * number + one["seed"]} for one in trainings
    ]
    made["learning"] = expected_trainings.learning(case)
    if not VARIANTS[case.variant].has_exact_gradients:
        made["error"]["gradient"] = None
    path = rounds.path_of(root, synthetic.CPU, synthetic.round_name(number), case)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The frame of two rounds of trainings, and of attention."""
    root = tmp_path_factory.mktemp("learnt") / "published"
    for task in grid.tasks("smoke", ["quality"]):
        for number in (1, 2):
            _write(root, task.case, number)
    synthetic.write(root, "backends", "smoke")
    return records.load(synthetic.vouch(root))


def test_a_row_has_the_trainings_of_all_rounds(loaded):
    rows = loaded[loaded["experiment"] == "quality"]
    tasks = {task.case.name: task.case for task in grid.tasks("smoke", ["quality"])}
    assert len(rows) == len(tasks)
    for _, row in rows.iterrows():
        recipe = RECIPES[row["recipe"]]
        found = [one.seed for one in row["trainings"]]
        assert found == [100 * n + seed for n in (1, 2) for seed in range(recipe.seeds)]
        assert row["rounds"] == 2 and row["status"] == "ok"
        case = tasks[row["command"].rpartition(" ")[2]]
        assert (row["recipe"], row["head_offset"]) == (case.recipe, case.head_offset)
        expected = expected_trainings.trainings(case, 1.0)
        losses = [one["evaluations"][-1]["loss"] for one in expected]
        assert learnt.values(row) == losses * 2
        assert row["learning"].parameters == expected_trainings.learning(case)["parameters"]
        found = learnt.interval(row)
        assert found.low < found.value < found.high
        assert learnt.flops(row) == row["useful_flops"] * recipe.training.steps


def test_rows_of_one_shape_are_told_apart_by_recipe(loaded):
    rows = loaded[loaded["experiment"] == "quality"]
    assert {*rows["recipe"]} == {task.case.recipe for task in grid.tasks("smoke", ["quality"])}
    assert len(rows.drop_duplicates("path")) == len(rows)


def test_a_comparison_has_a_row_of_each_case_of_a_shape(tmp_path):
    """Of those too that differ in the recipe or the offset of heads alone."""
    cases = [task.case for task in grid.tasks("laptop", ["quality"])]
    attention = [tuple(getattr(case, f.name) for f in fields(Case)) for case in cases]
    assert len(set(attention)) < len(cases)
    for case in cases:
        _write(tmp_path / "published", case, 1, "laptop")
    (side,) = sides.of_machines(files.read(synthetic.vouch(tmp_path / "published"))).values()
    assert {*side.rows} == {*side.files} == {*cases}
    for case, row in side.rows.items():
        assert (row["recipe"], row["head_offset"]) == (case.recipe, case.head_offset)


def test_a_row_of_attention_has_no_trainings(loaded):
    rows = loaded[loaded["experiment"] == "backends"]
    assert len(rows) > 3
    for _, row in rows.iterrows():
        assert pd.isna([row["recipe"], row["head_offset"], row["learning"]]).all()
        assert row["trainings"] == ()
