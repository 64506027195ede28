"""The training loop by numbers: gradients, updates, evaluations, and going on to the bit."""

import copy
import math

import pytest
import torch

from experiments.training.batch import Batch
from experiments.training.loop import Diverged, train
from experiments.training.state import TrainingState
from experiments.training.tasks import AssociativeRecall, Copy
from tests.experiments.training.tiny import Tiny, training, weights

SOURCE = AssociativeRecall(16, 4, vocab_size=16, pairs=2)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_steps_are_those_of_adamw_read_plainly():
    """In float64, by the formulas of arXiv 1711.05101 and the gradient of the mean loss."""
    model, config = Tiny(), training(clip=0.2, weight_decay=0.3, warm_up_steps=2, steps=4)
    plain = copy.deepcopy(model).double()
    averages = {name: (0.0, 0.0) for name, _ in plain.named_parameters()}
    losses, norms = [], []
    for step, fraction in enumerate((0.5, 1, 0.55, 0.1), start=1):
        inputs, targets, _ = SOURCE.batch("train", step - 1)
        log_p = plain(inputs).log_softmax(-1)
        asked = targets != -100
        loss = -log_p[asked].gather(1, targets[asked][:, None]).mean()
        names, parameters = zip(*plain.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        losses.append(loss.item() / math.log(2))
        norms.append(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
        rate = 0.01 * fraction
        for name, one, g in zip(names, parameters, gradients, strict=True):
            g = g * min(1, 0.2 / norms[-1])
            first, second = averages[name]
            averages[name] = (0.9 * first + 0.1 * g, 0.95 * second + 0.05 * g**2)
            first, second = averages[name]
            update = first / (1 - 0.9**step) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
            decays = name in ("mix.weight", "head.weight")
            one.data -= rate * (update + (0.3 * one.data if decays else 0))
    result = train(config, source=SOURCE, model=model)
    assert result.losses == pytest.approx(losses, rel=1e-6)
    assert [one.gradient_norm for one in result.reports] == pytest.approx(norms, rel=1e-5)
    assert [one.learning_rate for one in result.reports] == pytest.approx(
        [0.005, 0.01, 0.0055, 0.001]
    )
    assert [one.tokens for one in result.reports] == [64] * 4
    for name, one in model.named_parameters():
        torch.testing.assert_close(one.double(), plain.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_embeddings_tied_too_norms_and_biases_do_not_decay():
    model = Tiny(vocab_size=8)
    model.head.weight = model.embedding.weight
    groups = TrainingState(model, training().optimiser).optimiser.param_groups
    names = {id(one): name for name, one in model.named_parameters()}
    found = {group["weight_decay"]: [names[id(x)] for x in group["params"]] for group in groups}
    assert found == {
        0.1: ["mix.weight"],
        0.0: ["embedding.weight", "mix.bias", "norm.weight", "norm.bias"],
    }


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_add_up_to_the_batch(rows):
    whole, parts = Tiny(), Tiny()
    one = train(training(), source=SOURCE, model=whole)
    other = train(training(micro_batch=rows), source=SOURCE, model=parts)
    assert other.losses == pytest.approx(one.losses, rel=1e-5)
    for name, found in weights(parts).items():
        torch.testing.assert_close(found, weights(whole)[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"micro_batch=3: expected a divisor of a process's 4 ro"):
        train(training(micro_batch=3), source=SOURCE, model=Tiny())


def test_what_is_saved_after_any_step_goes_on_to_the_bit():
    """With dropout: what a step draws is seeded by the step."""
    model, saved = Tiny(dropout=0.3), {}

    def keep(report, state):
        saved[report.step] = copy.deepcopy(state.to_dict())

    whole = train(training(), source=SOURCE, model=model, on_step=keep)
    for step in (1, 4, 6):
        again = Tiny(dropout=0.3, seed=9)
        rest = train(training(), source=SOURCE, model=again, resume=copy.deepcopy(saved[step]))
        assert rest.losses == whole.losses[step:] and rest.is_complete
        assert rest.evaluations == [one for one in whole.evaluations if one.step > step]
        assert equal(weights(again), weights(model))
    other = train(training(seed=1), source=SOURCE, model=Tiny(dropout=0.3))
    assert other.losses != whole.losses


def test_the_callers_random_numbers_are_left_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(training(), source=SOURCE, model=Tiny(dropout=0.5))
    assert torch.equal(torch.rand(3), expected)


def test_bfloat16_is_of_products_not_of_weights():
    seen = []
    model = Tiny()
    model.head.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    mixed = train(training(precision="bfloat16"), source=SOURCE, model=model)
    exact = train(training(), source=SOURCE, model=Tiny())
    assert set(seen) == {torch.bfloat16}
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert mixed.losses != exact.losses
    assert mixed.losses == pytest.approx(exact.losses, rel=2e-2)


def test_it_stops_when_told_and_after_the_step_asked_for():
    told = iter([False, False, True])
    stopped = train(training(), source=SOURCE, model=Tiny(), should_stop=lambda: next(told))
    assert [one.step for one in stopped.reports] == [1, 2, 3] and not stopped.is_complete
    asked = train(training(), source=SOURCE, model=Tiny(), until=2)
    assert asked.losses == stopped.losses[:2] and asked.state.step == 2
    none = train(training(), source=SOURCE, model=Tiny(), until=2, resume=asked.state.to_dict())
    assert none.reports == () and none.state.step == 2 and math.isnan(none.median_ms)


def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_step_before():
    model, kept = Tiny(), []

    def spoil(report, state):
        kept.append(weights(model))
        if report.step == 2:
            model.head.register_forward_hook(lambda module, given, out: out * math.nan)

    with pytest.raises(Diverged, match=r"^step 3: the loss is nan nats and the norm"):
        train(training(evaluate_every=6), source=SOURCE, model=model, on_step=spoil)
    assert equal(weights(model), kept[-1]) and len(kept) == 2


class Silent:
    name = "silent"

    def batch(self, split, index, *, rows=None):
        batch = SOURCE.batch(split, index, rows=rows)
        return Batch(batch.inputs, torch.full_like(batch.inputs, -100), batch.distances)


def test_a_batch_that_asks_nothing_is_an_error():
    with pytest.raises(ValueError, match="source='silent': batch 0 asks for no token"):
        train(training(), source=Silent(), model=Tiny())


def test_a_learnable_task_is_learnt():
    """Chance is 1 in 8 (3 bits); of the row's two values alone, 1 in 2."""
    config = training(steps=150, learning_rate=0.03, evaluate_every=150, evaluation_batches=8)
    (found,) = train(config, source=SOURCE, model=Tiny()).evaluations
    assert found.loss < 2.6 and found.accuracy > 0.2


def test_evaluations_read_plainly():
    """Bits, right guesses and their ranges, token by token."""
    model, source, rows = Tiny(dropout=0.5), Copy(16, 4, vocab_size=16), []
    found = train(training(steps=1, learning_rate=1e-9), source=source, model=model).evaluations[0]
    for index in range(2):
        inputs, targets, distances = source.batch("validation", index)
        model.eval()
        logits = model(inputs).detach().double()
        for b in range(4):
            for n in range(16):
                if targets[b, n] != -100:
                    bits = -logits[b, n].log_softmax(-1)[targets[b, n]].item() / math.log(2)
                    right = logits[b, n].argmax() == targets[b, n]
                    rows.append((n + 1, distances[b, n].item(), bits, float(right)))
    assert len(rows) == found.tokens > 40 and {row[0] % 2 for row in rows} == {0, 1}
    assert found.loss == pytest.approx(sum(row[2] for row in rows) / len(rows), rel=1e-6)
    assert found.accuracy == sum(row[3] for row in rows) / len(rows)
    for column, bins in ((0, found.by_position), (1, found.by_distance)):
        assert sum(one.tokens for one in bins) == len(rows)
        for one in bins:
            assert one.last == 2 * one.first - 1
            inside = [row for row in rows if one.first <= row[column] <= one.last]
            assert one.tokens == len(inside) > 0
            assert one.loss == pytest.approx(sum(x[2] for x in inside) / len(inside), rel=1e-6)
            assert one.accuracy == sum(x[3] for x in inside) / len(inside)


def test_compiled_it_takes_the_same_steps(monkeypatch):
    """By Dynamo without a code generator, which would take its time and not be ours."""
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model: compiled.append(model) or compile_(model, backend="eager")
    )
    model = Tiny()
    found = train(training(compile=True), source=SOURCE, model=model)
    assert compiled == [model]
    assert found.losses == pytest.approx(
        train(training(), source=SOURCE, model=Tiny()).losses, rel=1e-6
    )
