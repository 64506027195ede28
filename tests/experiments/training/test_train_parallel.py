"""Processes that share a training compute what one alone does: rows, tokens of rows, and both."""

import pytest
import torch

from experiments.training import parallel
from experiments.training.loop import train
from experiments.training.parallel import ALONE, Place
from experiments.training.tasks import AssociativeRecall
from models.longnet import LongNetConfig, LongNetLM
from models.registry import VARIANTS
from tests.experiments.training.tiny import Tiny, training, weights
from tests.models.ring_ranks import Pools

# Rows ask for unequal numbers of tokens: 20 tokens over 2 or 4 processes, unequal shards too.
SOURCE = AssociativeRecall(20, 4, vocab_size=16, pairs=2)
BRANCHES = {"segment_lengths": (8, 20), "dilation_rates": (1, 3)}


@pytest.fixture(scope="module")
def rings():
    """Gloo groups of any size."""
    pools = Pools()
    yield pools
    pools.close()


class Uneven(AssociativeRecall):
    """The first row asks for one token only: a mean over processes would not be that of tokens."""

    def batch(self, split, index, *, rows=None):
        batch = super().batch(split, index)
        asked = (batch.targets[0] != -100).nonzero()
        batch.targets[0, asked[1:]] = -100
        return type(batch)(*(part[rows or slice(None)] for part in batch))


UNEVEN = Uneven(20, 4, vocab_size=16, pairs=2)


def tiny(_group):
    return Tiny()


def longnet(attention, **fields):
    """Builds that model: the same first weights in each process."""

    def build(group):
        config = LongNetConfig(
            vocab_size=16,
            max_seq_len=20,
            layers=2,
            embed_dim=16,
            heads=2,
            attention=attention,
            **fields,
        )
        torch.manual_seed(3)
        return LongNetLM(config, group=group)

    return build


MODELS = {
    "rows": (tiny, None),
    "ring-dilated": (longnet("ring-dilated", **BRANCHES), "ring-dilated"),
    "ring-distributed": (longnet("ring-distributed"), "ring-distributed"),
    "ring-hilbert": (longnet("ring-hilbert"), "ring-hilbert"),
    "distributed-dilated": (longnet("distributed-dilated", **BRANCHES), "distributed-dilated"),
}


def trained(name, place, changes):
    """A training at a place, as what is compared: numbers, first gradients and last weights."""
    model, gradients = MODELS[name][0](place.group), {}

    def keep(report, state):
        if report.step == 1:
            gradients.update((key, one.grad.clone()) for key, one in model.named_parameters())

    result = train(training(**changes), source=UNEVEN, model=model, place=place, on_step=keep)
    norms = [one.gradient_norm for one in result.reports]
    return result.losses, norms, result.evaluations, gradients, dict(weights(model))


def order(name):
    variant = MODELS[name][1]
    return variant and VARIANTS[variant].shard_order


def job(name, context, changes):
    """The training in one of the processes."""
    return trained(name, parallel.of_this_process("cpu", context, 4, order(name)), changes)


def ranges(evaluation):
    """Where its ranges begin, and their tokens."""
    return [(one.first, one.tokens) for one in evaluation.by_distance + evaluation.by_position]


@pytest.mark.parametrize(
    ("name", "ranks", "context"),
    [
        ("rows", 2, 1),
        ("ring-dilated", 2, 2),
        ("ring-distributed", 2, 2),
        ("ring-distributed", 2, 1),
        ("ring-hilbert", 2, 2),
        ("distributed-dilated", 4, 2),
    ],
)
def test_processes_train_to_what_one_does(rings, name, ranks, context):
    changes = {"steps": 4, "micro_batch": 1, "clip": 0.5, "evaluate_every": 4}
    losses, norms, (evaluation,), gradients, expected = trained(name, ALONE, changes)
    for found in rings.run(ranks, job, name, context, changes):
        assert found[0] == pytest.approx(losses, rel=1e-5)
        assert found[1] == pytest.approx(norms, rel=1e-4)
        assert found[2][0].loss == pytest.approx(evaluation.loss, rel=1e-4)
        assert ranges(found[2][0]) == ranges(evaluation)
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[3][key], gradient, rtol=1e-4, atol=1e-7)
            # That of a key's bias is 0 but for rounding, out of which AdamW makes whole steps.
            counts = gradient.abs() > 1e-6
            one, other = found[4][key][counts], expected[key][counts]
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def told_of_one(told_rank, context):
    place = parallel.of_this_process("cpu", context, 4, None)
    result = train(
        training(),
        source=SOURCE,
        model=Tiny(),
        place=place,
        should_stop=lambda: place.rank == told_rank,
    )
    return result.state.step


def test_all_stop_after_the_same_step_whichever_is_told(rings):
    assert rings.run(2, told_of_one, 1, 1) == [1, 1]


def fails(_rank):
    place = parallel.of_this_process("cpu", 1, 4, None)
    try:
        place.by_the_first(lambda: int("x"))
    except ValueError as error:
        return str(error), place.by_the_first(lambda: place.rank)


def test_what_the_first_process_meets_is_met_by_all(rings):
    told = "invalid literal for int() with base 10: 'x'"
    assert rings.run(2, fails, 0) == [(told, 0), (told, 0)]


def places(context):
    place = parallel.of_this_process("cpu", context, 4, "contiguous")
    return place.rows, place.context_rank, place.positions(5).tolist()


def test_processes_of_a_row_are_neighbours(rings):
    assert rings.run(4, places, 2) == [
        (slice(0, 2), 0, [0, 1, 2]),
        (slice(0, 2), 1, [3, 4]),
        (slice(2, 4), 0, [0, 1, 2]),
        (slice(2, 4), 1, [3, 4]),
    ]


def test_a_single_process_has_all_of_it():
    x = torch.arange(12).view(2, 6)
    assert ALONE.tokens(x) is x and ALONE.positions(6).tolist() == list(range(6))
    assert ALONE.add_up(x) is x and ALONE.by_the_first(lambda: 3) == 3 and ALONE.is_first
    # A model over ranks too takes the tokens as they are read.
    assert parallel.of_this_process("cpu", 1, 4, "hilbert") is ALONE
    ordered = Place(order="hilbert")
    assert sorted(ordered.positions(6).tolist()) == list(range(6))
    assert torch.equal(ordered.tokens(x)[1] - 6, ordered.positions(6))
