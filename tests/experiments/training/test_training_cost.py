"""What a case of training is expected to cost, its shape in a round, and how it is told."""

import math
from dataclasses import replace

import pytest

from experiments import cost, grid, rounds, runner
from experiments.campaign import summary
from experiments.cost.rates import device
from experiments.training.recipes import RECIPES
from tests.analysis import synthetic
from tests.experiments.training.cases import training_case

LIMITS = grid.Limits(min_samples=3, max_samples=50, sample_seconds=0.3, timeout_s=1e6)
QUALITY = [task for tier in grid.TIERS for task in grid.tasks(tier, ["quality"])]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_case_costs_something_and_no_more_than_its_limit(kind):
    assert QUALITY
    for task in QUALITY:
        for timeout_s in (task.limits.timeout_s, 1.0, 1e-3):
            limits = replace(task.limits, timeout_s=timeout_s)
            one = cost.seconds(task.case, limits, kind, cores=2)
            assert min(one.start_up, one.reference, one.untimed, one.samples) >= 0
            if one.status == "unsupported":
                # A start, which no limit cuts.
                assert one.total == one.start_up < 5 and math.isnan(one.pass_ms)
                continue
            assert 0 < one.total <= timeout_s * (1 + 1e-12), task.name
            assert math.isfinite(one.pass_ms) and one.pass_ms > 0
            assert one.status == ("ok" if one.total < timeout_s else "timeout")


def test_all_trainings_of_a_cpu_are_expected_to_end():
    for tier in ("smoke", "laptop"):
        for task in grid.tasks(tier, ["quality"]):
            assert cost.seconds(task.case, task.limits, "cpu", cores=2).status == "ok", task.name


def test_a_cost_by_hand():
    case, rates = training_case(variant="dense", heads=8, head_dim=64, seq_len=1024), device("cpu")
    recipe = RECIPES[case.recipe]
    one, two = (cost.seconds(case, LIMITS, "cpu", cores=cores) for cores in (1, 2))
    step = cost.useful_flops(case) / (1e9 * rates.matmul_gflops["float32"] * 0.3)
    step += 2.5e-3 * recipe.layers
    assert one.pass_ms == two.pass_ms == pytest.approx(1e3 * step, rel=1e-12)
    plan = recipe.training
    validated = math.ceil(plan.steps / plan.evaluate_every) * plan.evaluation_batches
    for found, cores in ((one, 1), (two, 2)):
        turns = math.ceil(recipe.seeds / cores)
        assert found.untimed == pytest.approx(turns * step * (plan.steps + validated / 3))
    # Beside as many cores as seeds, more are of no use.
    many = cost.seconds(case, LIMITS, "cpu", cores=64)
    assert many.untimed == pytest.approx(one.untimed / recipe.seeds)
    card = cost.seconds(case, LIMITS, "cuda")
    assert card.untimed == pytest.approx(
        recipe.seeds * (plan.steps + validated / 3) * card.pass_ms / 1e3
    )


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_more_steps_longer_rows_and_more_seeds_cost_more(kind, monkeypatch):
    case = training_case(variant="dense", heads=8, head_dim=64)
    lengths = [
        cost.seconds(replace(case, seq_len=2**k), LIMITS, kind, cores=2).total for k in range(5, 15)
    ]
    assert lengths == sorted(set(lengths))
    recipe = RECIPES[case.recipe]
    totals = [cost.seconds(case, LIMITS, kind, cores=2).untimed]
    for more in (
        {"training": replace(recipe.training, steps=10 * recipe.training.steps)},
        {"seeds": 10 * recipe.seeds},
    ):
        changed = {**RECIPES, case.recipe: replace(recipe, **more)}
        monkeypatch.setattr(cost.training, "RECIPES", changed)
        totals.append(cost.seconds(case, LIMITS, kind, cores=2).untimed)
    assert totals[2] == pytest.approx(10 * totals[0]) and 5 * totals[0] < totals[1]


def test_what_a_device_cannot_run_is_not_trained():
    triton = training_case(variant="dilated-triton")
    assert cost.seconds(triton, LIMITS, "cpu").status == "unsupported"
    assert cost.seconds(triton, LIMITS, "cuda").status == "ok"


def test_a_shape_of_one_recipe_is_not_that_of_another_nor_of_attention(case):
    recall, text = (training_case(recipe=name) for name in ("recall-smoke", "text-smoke"))
    dense = training_case(variant="dense")
    assert rounds.shape_of(recall) == rounds.shape_of(dense) != rounds.shape_of(text)
    attention = case(
        **{
            key: getattr(dense, key) for key in ("variant", "batch", "seq_len", "heads", "head_dim")
        },
        kv_heads=2,
        pass_="forward_backward",
    )
    assert rounds.shape_of(attention) != rounds.shape_of(dense)
    assert rounds.shape_of(attention)[:-1] == rounds.shape_of(dense)[:-1]


def test_trainings_of_a_recipe_follow_one_another_in_a_round():
    cases = [
        training_case(variant=variant, recipe=recipe)
        for variant in ("dense", "dilated-sdpa", "block-sparse-sdpa")
        for recipe in ("recall-smoke", "text-smoke")
    ]
    tasks = [grid.Task(one, ("quality",), "training", grid.Limits()) for one in cases]
    for seed in range(20):
        drawn = [task.case.recipe for task in rounds.in_random_order(tasks, seed)]
        assert len({*drawn[:3]}) == len({*drawn[3:]}) == 1 and drawn[0] != drawn[3]


def test_a_training_is_told_with_its_recipe():
    told = runner.label(training_case(variant="block-sparse-sdpa", recipe="text-smoke"))
    assert told == (
        "block-sparse-sdpa: batch 2, 32 tokens, 2x8, local_window at 50 % sparsity, "
        "float32 causal, trained by text-smoke"
    )


def test_times_in_a_summary_are_over_dense_attention_of_the_same_recipe():
    of_recipe = {"recall-smoke": 4.0, "text-smoke": 10.0}
    found = []
    for recipe, dense_ms in of_recipe.items():
        for variant, ms in (("dense", dense_ms), ("dilated-sdpa", 2.0)):
            one = training_case(variant=variant, recipe=recipe)
            made = synthetic.record(one, "smoke", synthetic.CPU)
            found.append(made | {"replicates": [{"samples_ms": [ms]}]})
    lines = summary.records_table(found).splitlines()
    for recipe, dense_ms in of_recipe.items():
        (line,) = (one for one in lines if recipe in one and "dilated-sdpa" in one)
        assert f"| {dense_ms / 2:.2f} |" in line
