"""A case of training from its check to its record: the numbers are those of the loop."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from experiments import check, gate, grid
from experiments.cost.pairs import dense_pairs, useful_flops, whole_pairs
from experiments.machine import describe
from experiments.procedures import training as procedure
from experiments.schema import Record
from experiments.supervise import supervise
from experiments.training import sources
from experiments.training.kneser_ney import KneserNey
from experiments.training.layer_attention import attention_of
from experiments.training.loop import train
from experiments.training.model import language_model
from experiments.training.recipes import ORDERS, RECIPES, run_config
from models.dilated_op import PASSES
from models.longnet import LongNetLM
from models.registry import VARIANTS
from tests.experiments.training.cases import training_case

LIMITS = grid.Limits(min_samples=1, max_samples=2, sample_seconds=0.01, timeout_s=60)


def _supervise(case, limits=LIMITS) -> dict:
    return supervise("smoke", case, limits, describe("cpu"), "0" * 16, procedure="training")


def _of_grid(recipe, variant="dilated-masked"):
    """A task of the quick tier."""
    return next(
        task
        for task in grid.tasks("smoke", ["quality"])
        if (task.case.recipe, task.case.variant) == (recipe, variant)
    )


def _by_hand(case, seed):
    """The loop's own result, of a model that is made here."""
    config = run_config(case, seed)
    source = sources.build(config.data)
    torch.manual_seed(seed)
    model = LongNetLM(language_model(config, source))
    return train(config.training, source=source, model=model)


def _told(bins) -> list[dict]:
    return [
        {"first": one.first, "tokens": one.tokens, "loss": one.loss, "accuracy": one.accuracy}
        for one in bins
    ]


@pytest.mark.parametrize("recipe", ["recall-smoke", "text-smoke"])
def test_a_record_holds_what_its_trainings_gave(recipe):
    task = _of_grid(recipe)
    case, recipe = task.case, RECIPES[recipe]
    result = json.loads(json.dumps(_supervise(case, task.limits)))
    assert (result["status"], result["reason"]) == ("ok", None)
    record = Record.model_validate(result)
    gate.check_result("a record", record)
    assert record.to_case() == case and record.command_line.endswith(case.name)
    (one,) = record.replicates
    assert task.limits.min_samples <= len(one.samples_ms) <= task.limits.max_samples
    assert len(one.trainings) == recipe.seeds and one.ranks is None
    assert len({training.seed for training in one.trainings}) == recipe.seeds
    # Some thousand weights, and not the modules that a first step would import.
    assert one.peak_memory_bytes < 50 * 2**20
    for training in one.trainings:
        result = _by_hand(case, training.seed)
        last = result.evaluations[-1]
        assert training.steps == len(result.reports) == recipe.training.steps
        assert training.step_losses == result.losses
        assert [(e.step, e.loss, e.accuracy) for e in training.evaluations] == [
            (e.step, e.loss, e.accuracy) for e in result.evaluations
        ]
        assert training.tokens == last.tokens
        assert [part.model_dump() for part in training.by_position] == _told(last.by_position)
        assert [part.model_dump() for part in training.by_distance] == _told(last.by_distance)
        assert 0 < training.steps_s < record.wall_s
    first, second = (training.step_losses for training in one.trainings[:2])
    assert first != second


def test_two_trainings_of_a_seed_are_the_same_to_the_bit_and_of_two_seeds_are_not():
    case = training_case(head_offset="block")
    one, same, other = (procedure.training(case, seed, "cpu") for seed in (3, 3, 4))
    for found in (one, same, other):
        assert found.pop("steps_s") > 0
    assert one == same and one["seed"] == 3
    result = _by_hand(case, 3)
    assert one["step_losses"] == result.losses
    assert one["by_distance"] == _told(result.evaluations[-1].by_distance) != []
    for name in ("step_losses", "evaluations"):
        assert one[name] != other[name]


def test_losses_of_many_steps_are_kept_as_means(monkeypatch):
    case = training_case(variant="dense", seq_len=16)
    recipe = RECIPES[case.recipe]
    longer = replace(recipe, training=replace(recipe.training, steps=60, evaluate_every=60))
    monkeypatch.setattr("experiments.training.recipes.RECIPES", {case.recipe: longer})
    found = procedure.training(case, 0, "cpu")
    losses = _by_hand(case, 0).losses
    assert len(losses) == found["steps"] == 60 and len(found["step_losses"]) == 25
    # 60 = 10 * 3 + 15 * 2.
    means = [np.mean(losses[3 * n : 3 * n + 3]) for n in range(10)]
    means += [np.mean(losses[30 + 2 * n : 32 + 2 * n]) for n in range(15)]
    assert found["step_losses"] == pytest.approx(means, rel=1e-12)
    assert [one["step"] for one in found["evaluations"]] == [60]


def _reference(case, path, kept=check.anew):
    return procedure.make_reference(case, "cpu", path, kept)


def test_what_is_learnt_is_told_of_a_task(tmp_path, one_core):
    case = training_case(variant="dense")
    recipe = RECIPES[case.recipe]
    learning = _reference(case, tmp_path / "reference.pt")["learning"]
    config = run_config(case, 0)
    source = sources.build(config.data)
    model = LongNetLM(language_model(config, source))
    assert learning["parameters"] == sum(one.numel() for one in model.parameters())
    assert (learning["source"], learning["sha256"]) == ("associative_recall", None)
    assert (learning["packages"], learning["n_gram_losses"]) == (None, None)
    values = recipe.vocab_size - recipe.vocab_size // 2
    assert learning["facts"]["chance_accuracy"] == 1 / values
    assert learning["facts"]["pairs"] == recipe.options["pairs"]
    assert not {"seq_len", "batch", "seed", "task"} & {*learning["facts"]}


def test_what_is_learnt_is_told_of_a_text(tmp_path, one_core):
    case = training_case(variant="dense", recipe="text-smoke", seq_len=64)
    asked = []

    def kept(what, make, device):
        asked.append(what)
        return make()

    learning = _reference(case, tmp_path / "reference.pt", kept)["learning"]
    config = run_config(case, 0)
    source = sources.build(config.data)
    assert learning["sha256"] == source.corpus.sha256
    assert [one["name"] for one in learning["packages"]] == [
        one["name"] for one in source.corpus.packages
    ]
    assert learning["facts"] == {
        "train_bytes": len(source.corpus.train),
        "validation_bytes": len(source.corpus.validation),
    }
    batches = config.training.evaluation_batches
    held = torch.cat([source.batch("validation", n).inputs.flatten() for n in range(batches)])
    count = len(held)
    assert count == batches * case.batch * case.seq_len
    # All that is asked: the bytes read and the one behind the last.
    text = source.corpus.validation[: count + 1]
    assert np.array_equal(text[:-1], held.numpy())
    assert learning["n_gram_losses"] == {
        str(n): KneserNey(source.corpus.train, n).bits_per_byte(text) for n in ORDERS
    }
    assert all(1 < bits < 8 for bits in learning["n_gram_losses"].values())
    assert asked == [{"n_gram": source.corpus.sha256, "validated": count}]


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A file that is there once a training has begun."""
    path, real = tmp_path / "begun", procedure.training

    def training(*arguments):
        path.touch()
        return real(*arguments)

    monkeypatch.setattr(procedure, "training", training)
    return path


def test_a_wrong_attention_is_failed_before_anything_is_trained(begun, monkeypatch):
    case = training_case()
    assert _supervise(case)["status"] == "ok" and begun.exists()
    begun.unlink()
    forward, backward = PASSES["cpu-flash"]

    def slightly_wrong(*arguments):
        out, lse = forward(*arguments)
        return out * (1 + 1e-5), lse

    monkeypatch.setitem(PASSES, "cpu-flash", (slightly_wrong, backward))
    result = _supervise(case)
    assert (result["status"], result["replicates"]) == ("failed", [])
    assert result["reason"].startswith("output: relative error 1.0")
    assert not begun.exists()
    Record.model_validate(result)


def test_a_training_that_fails_fails_its_case(monkeypatch):
    def diverges(case, seed, device):
        raise ValueError(f"step 3: the loss is nan nats, seed {seed}")

    monkeypatch.setattr(procedure, "training", diverges)
    result = _supervise(training_case(variant="dense"))
    assert result["status"] == "failed" and result["learning"]["source"] == "associative_recall"
    assert result["reason"].startswith("TrainingFailed: ValueError: step 3: the loss is nan nats")
    Record.model_validate(result)


def test_a_training_without_memory_is_out_of_memory(monkeypatch):
    def too_large(*_):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(procedure, "training", too_large)
    result = _supervise(training_case(variant="dense"))
    assert (result["status"], result["reason"]) == ("oom", "Unable to allocate 9 TiB")


def test_what_no_backend_can_is_unsupported_and_not_trained(begun):
    result = _supervise(training_case(variant="dense-cudnn"))
    assert (result["status"], result["backend"]) == ("unsupported", None)
    assert result["reason"] == "sdpa-cudnn: needs a CUDA device"
    assert result["learning"] is None and not begun.exists()
    Record.model_validate(result)


def test_gradients_of_detached_mixing_are_not_checked_and_it_is_trained():
    result = _supervise(training_case(variant="dilated-detached"))
    record = Record.model_validate(result)
    assert (record.status, record.error.gradient) == ("ok", None)
    exact = training_case()
    for training in record.replicates[0].trainings:
        found = procedure.training(exact, training.seed, "cpu")
        # The first loss is before any step; later ones are of other gradients.
        assert training.step_losses[0] == pytest.approx(found["step_losses"][0], rel=1e-6)
        assert training.step_losses[-1] != found["step_losses"][-1]


@pytest.mark.parametrize(
    ("taken", "kept"),
    [
        ([], []),
        ([5.0], []),
        ([900.0, 1.0, 2.0], [1.0, 2.0]),
        # The third ends at 210 ms, and began before 200.
        ([90.0, 80.0, 40.0, 30.0, 20.0], [30.0, 20.0]),
        ([100.0, 100.0, 3.0], [3.0]),
        ([50.0, 60.0], []),
    ],
)
def test_samples_are_of_steps_that_begin_warm(taken, kept):
    assert procedure._warm(taken) == kept


def test_as_many_steps_are_timed_as_are_asked_for(monkeypatch, tmp_path, one_core):
    """And the losses of no other training are among them."""
    monkeypatch.setattr(procedure, "WARM_UP_MS", 0.0)
    case = training_case(variant="dense", seq_len=16)
    _reference(case, tmp_path / "reference.pt")
    for least, most in ((1, 1), (3, 3), (2, 5)):
        limits = {"min_samples": least, "max_samples": most, "sample_seconds": 1e-9}
        found = procedure._measured(case, "cpu", tmp_path / "reference.pt", limits)
        assert least <= len(found["samples_ms"]) <= most
        assert min(found["samples_ms"]) > 0 and found["peak_memory_bytes"] >= 0
    limits = {"min_samples": 2, "max_samples": 6, "sample_seconds": 1e9}
    found = procedure._measured(case, "cpu", tmp_path / "reference.pt", limits)
    assert len(found["samples_ms"]) == 6


def test_seeds_are_drawn_anew_for_each_record():
    case = training_case(variant="dense", seq_len=16)
    records = [_supervise(case) for _ in range(2)]
    seeds = [[one["seed"] for one in r["replicates"][0]["trainings"]] for r in records]
    assert len({*seeds[0], *seeds[1]}) == 2 * RECIPES[case.recipe].seeds
    assert all(0 <= seed < 2**31 for own in seeds for seed in own)


def test_the_same_weights_begin_a_training_of_a_seed_whatever_was_drawn_before():
    case = training_case(variant="dense", seq_len=16)
    made = partial(procedure._made, run_config(case, 5), "cpu")
    (_, one), _ = made(), torch.randn(100)
    _, other = made()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize("tier", ["smoke", "laptop"])
def test_every_case_of_a_cpu_agrees_with_the_oracle_and_its_closed_form(
    tier, tmp_path, one_core, monkeypatch
):
    monkeypatch.setattr(procedure, "_learning", lambda config, kept: {})
    path = tmp_path / "reference.pt"
    for task in grid.tasks(tier, ["quality"]):
        known = _reference(task.case, path)
        assert known["useful_flops"] == useful_flops(task.case), task.name
        density = whole_pairs(task.case) / dense_pairs(task.case)
        assert known["realised_density"] == pytest.approx(density, rel=1e-12), task.name
        work = attention_of(task.case, "cpu")
        found = check.compare_whole(work, work.step(), path)
        for name, allowance in (("output", 2.0), ("gradient", 3.0)):
            if found[name] is not None:
                one = found[name]
                assert one["relative_rms"] <= allowance * one["baseline_relative_rms"], task.name
        is_exact = VARIANTS[task.case.variant].has_exact_gradients
        assert (found["gradient"] is not None) == is_exact
