"""The n-gram model against a slow reading of the same formulas, with dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.training.corpus import corpus
from experiments.training.kneser_ney import KneserNey, discounts

SAMPLE = (
    b"the cat sat on the mat; the rat sat on the cat. " * 3 + b"a bat ate the hat, that was that. "
)


def _bytes(text):
    return np.frombuffer(text, np.uint8)


class ByDictionary:
    """Chen and Goodman's model, read off the paper gram by gram."""

    def __init__(self, text, order):
        self.order = order
        grams = Counter(text[i : i + order] for i in range(len(text) - order + 1))
        self.counts = {order: grams}
        for length in range(order - 1, 0, -1):
            before = defaultdict(set)
            for gram in self.counts[length + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[length] = {gram: len(bytes_) for gram, bytes_ in before.items()}
        self.discounts = {n: self._discounts(counts) for n, counts in self.counts.items()}

    @staticmethod
    def _discounts(counts):
        n = Counter(counts.values())
        y = n[1] / max(1, n[1] + 2 * n[2])
        found = []
        for c, default in ((1, 0.5), (2, 1.0), (3, 1.5)):
            is_defined = n[1] and n[c] and n[c + 1]
            closed = c - (c + 1) * y * n[c + 1] / n[c] if is_defined else default
            found.append(closed if 0 <= closed <= c else default)
        return found

    def probability(self, byte, context):
        """P(byte | context), of which as many bytes count as the order allows."""
        length = len(context) + 1
        lower = 1 / 256 if length == 1 else self.probability(byte, context[1:])
        followers = {
            gram[-1]: count for gram, count in self.counts[length].items() if gram[:-1] == context
        }
        if not followers:
            return lower
        total = sum(followers.values())
        taken = {one: self.discounts[length][min(count, 3) - 1] for one, count in followers.items()}
        own = followers.get(byte, 0) - taken.get(byte, 0)
        return own / total + sum(taken.values()) / total * lower


@settings(deadline=None, max_examples=30)
@given(
    text=st.lists(st.integers(97, 102), min_size=5, max_size=200).map(bytes),
    order=st.integers(1, 5),
    data=st.data(),
)
def test_probabilities_are_those_of_the_dictionaries(text, order, data):
    fast, slow = KneserNey(_bytes(text), order), ByDictionary(text, order)
    for length, level in enumerate(fast.levels, 1):
        assert level.discounts == pytest.approx(slow.discounts[length], rel=1e-12)
    context = data.draw(st.lists(st.integers(96, 103), min_size=order - 1, max_size=order - 1))
    found = fast.probabilities(bytes(context))
    for byte in (0, *range(96, 104), 255):
        assert found[byte] == pytest.approx(slow.probability(byte, bytes(context)), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 7])
def test_bits_are_those_of_the_dictionaries(order):
    held_out = b"the bat sat on that hat"
    slow = ByDictionary(SAMPLE, order)
    padded = b"\0" * (order - 1) + held_out
    bits = [
        -math.log2(slow.probability(padded[i], padded[i - order + 1 : i]))
        for i in range(order - 1, len(padded))
    ]
    assert len(bits) == len(held_out)
    found = KneserNey(_bytes(SAMPLE), order).bits_per_byte(_bytes(held_out))
    assert found == pytest.approx(sum(bits) / len(bits), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_every_context(order):
    model = KneserNey(_bytes(SAMPLE), order)
    seen = {SAMPLE[i : i + order - 1] for i in range(len(SAMPLE) - order + 2)}
    contexts = [*seen, b"", b"\xff" * 6, b"\0qz\0qz", b"at\xff\xffat", b"long before " + SAMPLE[:9]]
    for context in contexts:
        found = model.probabilities(context)
        assert found.shape == (256,)
        assert found.min() > 0
        assert found.sum() == pytest.approx(1, abs=1e-12)


def test_only_the_last_bytes_of_a_context_count_and_zeros_stand_before_a_short_one():
    model = KneserNey(_bytes(SAMPLE), 3)
    assert np.array_equal(model.probabilities(b"on the"), model.probabilities(b"he"))
    assert np.array_equal(model.probabilities(b"h"), model.probabilities(b"\0h"))
    assert not np.array_equal(model.probabilities(b"th"), model.probabilities(b"h"))


def test_discounts_are_the_closed_form():
    counts = np.repeat([1, 2, 3, 4, 9], [100, 40, 20, 10, 5])
    y = 100 / 180
    assert discounts(counts) == pytest.approx(
        (1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5), rel=1e-12
    )
    without_fours = discounts(np.repeat([1, 2, 3], [100, 40, 20]))
    assert without_fours == pytest.approx((1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 1.5), rel=1e-12)
    # n_3 so far above n_2 that the discount of twos would be below zero.
    assert discounts(np.repeat([1, 2, 3, 4], [100, 40, 50, 10]))[1] == 1.0
    assert discounts(np.repeat([2, 3, 4], [40, 20, 10])) == (0.5, 1.0, 1.5)


def test_text_in_chunks_costs_what_it_costs_whole(monkeypatch):
    model = KneserNey(_bytes(SAMPLE), 3)
    whole = model.bits_per_byte(_bytes(SAMPLE))
    monkeypatch.setattr("experiments.training.kneser_ney._CHUNK", 7)
    assert model.bits_per_byte(_bytes(SAMPLE)) == pytest.approx(whole, rel=1e-12)


def test_uniform_bytes_cost_eight_bits():
    random = np.random.default_rng(0).integers(0, 256, 1 << 18).astype(np.uint8)
    held_out = np.random.default_rng(1).integers(0, 256, 1 << 14).astype(np.uint8)
    assert KneserNey(random, 1).bits_per_byte(held_out) == pytest.approx(8, abs=0.002)
    assert 8 < KneserNey(random, 3).bits_per_byte(held_out) < 8.2


def test_longer_grams_beat_the_entropy_of_single_bytes_on_code():
    text = corpus(train_bytes=1 << 19, validation_bytes=1 << 16)
    share = np.bincount(text.validation, minlength=256) / len(text.validation)
    share = share[share > 0]
    entropy = -(share * np.log2(share)).sum()
    bits = [KneserNey(text.train, order).bits_per_byte(text.validation) for order in (1, 2, 3, 4)]
    assert entropy < bits[0] < entropy + 0.3
    assert bits[0] - 0.8 > bits[1] > bits[2] + 0.5
    assert bits[2] > bits[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SAMPLE, 0), "order=0: expected an integer >= 1"),
        ((SAMPLE, 8), "order=8: expected 1 to 7"),
        ((SAMPLE[:2], 3), r"text=uint8 \(2,\): expected a uint8 array of one row, 3 bytes"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    text, order = arguments
    with pytest.raises(ValueError, match=message):
        KneserNey(_bytes(text), order)


def test_text_that_is_no_row_of_bytes_is_named():
    for text in (b"bytes", np.zeros(9), np.zeros((3, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected a uint8 array of one row"):
            KneserNey(text, 2)
    with pytest.raises(ValueError, match="1 bytes or more"):
        KneserNey(_bytes(SAMPLE), 2).bits_per_byte(np.zeros(0, np.uint8))
