"""Each task by a solver that knows its rule and nothing else, and where its answers stand."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.training.batch import IGNORED
from experiments.training.tasks import (
    TASKS,
    AssociativeRecall,
    Copy,
    Induction,
    Needle,
    expected_largest_count,
    log_uniform,
)

ALL = pytest.mark.parametrize("name", sorted(TASKS))
sizes = {
    "seq_len": st.integers(5, 130),
    "batch": st.integers(1, 4),
    "vocab_size": st.integers(4, 90),
    "seed": st.integers(0, 2**70),
    "index": st.integers(0, 2**40),
    "split": st.sampled_from(["train", "validation"]),
}


def solve_copy(tokens, vocab_size):
    """(position, answer, where it stands) for all that is asked."""
    length = tokens.index(vocab_size - 1)
    for mark in range(length, len(tokens), 2 * length + 1):
        assert tokens[mark] == vocab_size - 1
        for place in range(mark, min(mark + length, len(tokens))):
            yield place, tokens[place - length], place - length


def solve_induction(tokens, asked):
    """What followed the only earlier place of the token that is asked."""
    for place in asked:
        (earlier,) = [i for i in range(place) if tokens[i] == tokens[place]]
        assert tokens.count(tokens[place]) == 2
        yield place, tokens[earlier + 1], earlier + 1


def solve_recall(tokens, vocab_size, pairs):
    """A dictionary of the pairs, looked up wherever a key comes again."""
    keys = tokens[0 : 2 * pairs : 2]
    where = {key: 2 * i + 1 for i, key in enumerate(keys)}
    assert len(where) == pairs and max(keys) < vocab_size // 2
    for place in range(2 * pairs, len(tokens)):
        if tokens[place] < vocab_size // 2:
            yield place, tokens[where[tokens[place]]], where[tokens[place]]


def solve_needle(tokens, vocab_size):
    """The value after the key after the mark."""
    first, last = [i for i, token in enumerate(tokens) if token == vocab_size - 1]
    assert last == len(tokens) - 2 and tokens[first + 1] == tokens[-1]
    yield len(tokens) - 1, tokens[first + 2], first + 2


def solve(source, tokens, asked):
    if source.name == "copy":
        return solve_copy(tokens, source.vocab_size)
    if source.name == "induction":
        return solve_induction(tokens, asked)
    if source.name == "associative_recall":
        return solve_recall(tokens, source.vocab_size, source.pairs)
    return solve_needle(tokens, source.vocab_size)


@ALL
@settings(deadline=None, max_examples=60)
@given(**sizes)
def test_a_solver_finds_every_target(name, seq_len, batch, vocab_size, seed, index, split):
    source = TASKS[name](seq_len, batch, seed, vocab_size=vocab_size)
    inputs, targets, distances = source.batch(split, index)
    assert inputs.dtype == targets.dtype == distances.dtype == torch.int64
    assert inputs.shape == targets.shape == distances.shape == (batch, seq_len)
    assert inputs.min() >= 0 and inputs.max() < vocab_size
    for tokens, answers, back in zip(
        *map(torch.Tensor.tolist, (inputs, targets, distances)), strict=True
    ):
        asked = [i for i, answer in enumerate(answers) if answer != IGNORED]
        assert asked == [i for i, distance in enumerate(back) if distance != -1]
        found = list(solve(source, tokens, asked))
        assert sorted(place for place, _, _ in found) == asked
        for place, answer, where in found:
            assert answers[place] == answer
            assert back[place] == place - where
        if name in ("copy", "induction"):
            for place in asked:
                assert place + 1 == seq_len or tokens[place + 1] == answers[place]


def _octaves(distances, least, most):
    """Shares of distances from 1, 2, 4, ..., and what log(1 + 1 / d) gives between the bounds."""
    edges = [least] + [2**i for i in range(1, 40) if least < 2**i <= most] + [most + 1]
    counts = np.histogram(distances, edges)[0] / len(distances)
    whole = math.log((most + 1) / least)
    expected = [math.log(b / a) / whole for a, b in zip(edges, edges[1:], strict=False)]
    return counts, np.array(expected)


def _distances(source, batches=40):
    drawn = [source.batch("train", i).distances for i in range(batches)]
    return np.concatenate([one[one != -1].numpy() for one in drawn])


def test_log_uniform_has_the_weights_it_says():
    drawn = log_uniform(np.random.default_rng(0), 3, 10, 200_000)
    counts = np.bincount(drawn, minlength=12) / len(drawn)
    expected = [math.log1p(1 / d) / math.log(11 / 3) for d in range(3, 11)]
    assert counts[:3].sum() == counts[11:].sum() == 0
    assert np.abs(counts[3:11] - expected).max() < 5 * (0.25 / len(drawn)) ** 0.5


def test_lengths_of_copies_are_spread_over_all_octaves():
    source = Copy(257, 64, seed=1)
    lengths = [d.max(1).values for _, _, d in (source.batch("train", i) for i in range(40))]
    counts, expected = _octaves(torch.cat(lengths).numpy(), 1, 128)
    assert len(counts) == 8
    assert np.abs(counts - expected).max() < 5 * (0.25 / 2560) ** 0.5
    inputs, _, distances = source.batch("train", 0)
    assert ((distances != -1).float().mean(1) >= 0.25).all()
    assert (distances.max(1).values <= 128).all()


def test_distances_of_induction_are_spread_over_all_octaves():
    source = Induction(256, 64, seed=1)
    assert source.queries == 8
    drawn = _distances(source)
    assert len(drawn) > 0.99 * 40 * 64 * 8
    counts, expected = _octaves(drawn, 1, 254)
    assert len(counts) == 8
    # But for pairs that find no place, nearly all of them far apart.
    assert np.abs(counts - expected).max() < 0.01


def test_needles_are_spread_over_all_octaves_or_lie_where_asked():
    counts, expected = _octaves(_distances(Needle(259, 64, seed=1)), 2, 256)
    assert np.abs(counts - expected).max() < 5 * (0.25 / 2560) ** 0.5
    for distance in (2, 100, 256):
        assert set(_distances(Needle(259, 4, distance=distance), 2).tolist()) == {distance}


def test_gaps_of_recall_fall_off_as_the_inverse_and_fill_the_length():
    source = AssociativeRecall(1024, 64, seed=1, pairs=4)
    places = [np.nonzero(source.batch("train", i).distances.numpy() != -1)[1] for i in range(40)]
    gaps = (np.concatenate(places) - 8) // 2 + 1
    assert gaps.min() == 1 and gaps.max() > 450
    counts, _ = _octaves(gaps, 1, 508)
    # Without repetition the first ones are used up: fewer than 1 / g at 1, more further out.
    assert (counts[1:] > 0.08).all() and (counts < 0.16).all()
    drawn = _distances(AssociativeRecall(512, 64, seed=1))
    assert drawn.min() == 1 and drawn.max() > 480
    # 32 pairs take the first 64 tokens: most values are that far away at least.
    from_32, from_64, from_128, from_256 = _octaves(drawn, 1, 511)[0][5:]
    assert min(from_32, from_64, from_128, from_256) > 0.1
    assert max(from_32, from_64, from_128, from_256) < 0.35


@ALL
def test_targets_are_no_better_guessed_than_by_chance(name):
    source = TASKS[name](64, 64, seed=3, vocab_size=8)
    targets = torch.cat([source.batch("train", i).targets.flatten() for i in range(100)])
    counts = torch.bincount(targets[targets != IGNORED], minlength=8).double().numpy()
    chance, asked = source.description["chance_accuracy"], counts.sum()
    possible = counts[counts > 0]
    if name == "induction":
        # Any token may be an A of the row; who knows which are not guesses among six.
        assert source.queries == 2 and chance == 1 / 6
        chance = 1 / 8
    assert len(possible) == round(1 / chance)
    # Answers of a row repeat, as its noise does: errors are of rows rather than of answers.
    assert np.abs(possible / asked - chance).max() < 5 * (chance / (64 * 100)) ** 0.5


@ALL
def test_a_batch_is_a_pure_function_of_seed_split_and_number(name):
    one, other = TASKS[name](40, 3, 1), TASKS[name](40, 3, 1)
    forwards = [one.batch("train", i) for i in range(5)]
    backwards = [other.batch("train", i) for i in reversed(range(5))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    different = [
        *forwards,
        one.batch("validation", 0),
        one.batch("train", 2**32),
        TASKS[name](40, 3, 2).batch("train", 0),
    ]
    assert len({tuple(a.inputs.flatten().tolist()) for a in different}) == len(different)


@ALL
@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 4), slice(1, None, 2)])
def test_rows_are_those_of_the_whole_batch(name, rows):
    source = TASKS[name](30, 4, 5)
    for whole, part in zip(
        source.batch("train", 2), source.batch("train", 2, rows=rows), strict=True
    ):
        assert torch.equal(whole[rows], part)
        assert part.is_contiguous()


@ALL
def test_the_description_is_json_and_names_task_sizes_and_chance(name):
    said = TASKS[name](64, 2, 9, vocab_size=16).description
    assert json.loads(json.dumps(said)) == said
    sizes = {"task": name, "seq_len": 64, "batch": 2, "seed": 9, "vocab_size": 16}
    assert sizes.items() <= said.items()
    own = {
        "copy": {"chance_accuracy": 1 / 15},
        "induction": {"queries": 2, "chance_accuracy": 1 / 14},
        "associative_recall": {
            "pairs": 4,
            "chance_accuracy": 1 / 8,
            "commonest_value_accuracy": expected_largest_count(4, 8) / 4,
        },
        "needle": {"distance": None, "chance_accuracy": 1 / 15},
    }
    assert said == sizes | own[name]


@pytest.mark.parametrize(("draws", "kinds"), [(1, 1), (2, 3), (4, 2), (5, 3), (3, 4)])
def test_the_commonest_of_all_outcomes_counted_by_hand(draws, kinds):
    outcomes = list(itertools.product(range(kinds), repeat=draws))
    largest = [max(map(outcome.count, outcome)) for outcome in outcomes]
    assert expected_largest_count(draws, kinds) == pytest.approx(sum(largest) / len(outcomes))


def test_the_commonest_value_of_a_rows_pairs_answers_so_often():
    source = AssociativeRecall(64, 256, 0, vocab_size=16, pairs=8)
    right = []
    for index in range(8):
        inputs, targets, _ = source.batch("train", index)
        values = inputs[:, 1:16:2]
        commonest = values.mode(dim=1).values
        asked = targets != IGNORED
        right.append((commonest[:, None].expand_as(targets) == targets)[asked].double().mean())
    told = source.description["commonest_value_accuracy"]
    # 16,384 answers, those of a row not independent.
    assert sum(right).item() / len(right) == pytest.approx(told, abs=0.012)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy(2, 1), "seq_len=2: expected an integer >= 3"),
        (lambda: Copy(8, 0), "batch=0: expected an integer >= 1"),
        (lambda: Copy(8, 1, -1), "seed=-1: expected an integer >= 0"),
        (lambda: Copy(8, 1, vocab_size=3), "vocab_size=3: expected an integer >= 4"),
        (lambda: Induction(64, 1, queries=0), "queries=0: expected an integer >= 1"),
        (lambda: Induction(64, 1, queries=129), "queries=129: expected at most 128, half the"),
        (lambda: AssociativeRecall(64, 1, pairs=17), "pairs=17: expected at most 16, a quarter"),
        (lambda: AssociativeRecall(512, 1, vocab_size=8, pairs=5), "pairs=5: expected at most 4"),
        (lambda: Needle(64, 1, distance=1), "distance=1: expected an integer >= 2"),
        (lambda: Needle(64, 1, distance=62), "distance=62: expected at most 61, seq_len - 3"),
        (lambda: Needle(4, 1), "seq_len=4: expected an integer >= 5"),
        (lambda: Copy(8, 1).batch("test", 0), "split='test': expected one of train, validation"),
        (lambda: Copy(8, 1).batch("train", 1.0), "index=1.0: expected an integer >= 0"),
        (lambda: Copy(8, 1).batch("train", 0, rows=[0]), "expected a slice or None"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
