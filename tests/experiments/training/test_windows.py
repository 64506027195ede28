"""Windows of text: every window once an epoch, next bytes as targets, pure in the number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.training.corpus import Corpus
from experiments.training.windows import Windows

RANDOM = np.random.default_rng(7)
TRAIN = RANDOM.integers(0, 256, 5000).astype(np.uint8)
VALIDATION = RANDOM.integers(0, 256, 1200).astype(np.uint8)
CORPUS = Corpus("random", TRAIN, VALIDATION, "0" * 64, ())


def _starts(text, inputs):
    """Where rows of random bytes, 8 or more, stand in the text."""
    whole = text.tobytes()
    return [whole.index(row.numpy().astype(np.uint8).tobytes()) for row in inputs]


@settings(deadline=None, max_examples=40)
@given(
    seq_len=st.integers(8, 300),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**40),
    split=st.sampled_from(["train", "validation"]),
)
def test_targets_are_the_next_bytes(seq_len, batch, seed, split):
    if seq_len * batch > 1000:
        batch = 1
    windows = Windows(CORPUS, seq_len, batch, seed)
    text = {"train": TRAIN, "validation": VALIDATION}[split]
    inputs, targets, distances = windows.batch(split, 0)
    assert inputs.dtype == targets.dtype == distances.dtype == torch.int64
    assert inputs.shape == (batch, seq_len)
    for row, start in enumerate(_starts(text, inputs)):
        assert np.array_equal(inputs[row], text[start : start + seq_len])
        assert np.array_equal(targets[row], text[start + 1 : start + seq_len + 1])
    assert (distances == -1).all()


@settings(deadline=None, max_examples=25)
@given(seq_len=st.integers(8, 200), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_epoch_has_every_window_once_from_one_offset(seq_len, batch, seed):
    windows = Windows(CORPUS, seq_len, batch, seed)
    per_epoch = (5000 - seq_len) // seq_len // batch
    assert windows.batches_per_epoch == per_epoch
    for epoch in (0, 1):
        starts = []
        for place in range(per_epoch):
            starts += _starts(TRAIN, windows.batch("train", epoch * per_epoch + place).inputs)
        assert len(set(starts)) == per_epoch * batch
        (offset,) = {start % seq_len for start in starts}
        assert 0 <= offset < seq_len
        assert max(starts) + seq_len + 1 <= 5000
        if batch == 1:
            assert sorted(starts) == [offset + seq_len * i for i in range(len(starts))]


def test_offset_and_order_are_drawn_for_each_epoch():
    windows = Windows(CORPUS, 50, 1, seed=3)
    starts = [
        _starts(TRAIN, windows.batch("train", index).inputs)[0]
        for index in range(20 * windows.batches_per_epoch)
    ]
    epochs = np.array(starts).reshape(20, -1)
    offsets = epochs[:, 0] % 50
    assert len(set(offsets.tolist())) > 10
    orders = (epochs - offsets[:, None]) // 50
    assert len({tuple(order) for order in orders.tolist()}) == 20
    # Each place of an epoch sees the whole text: mean (W - 1) / 2 = 49, its error 28.6 / sqrt(20).
    assert np.abs(orders.mean(0) - 49).max() < 5 * 28.6 / 20**0.5


def test_a_batch_is_a_pure_function_of_seed_split_and_number():
    one, other = Windows(CORPUS, 40, 3, seed=1), Windows(CORPUS, 40, 3, seed=1)
    forwards = [one.batch("train", i).inputs for i in range(100)]
    backwards = [other.batch("train", i).inputs for i in reversed(range(100))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    seeded = Windows(CORPUS, 40, 3, seed=2)
    assert not torch.equal(seeded.batch("train", 0).inputs, forwards[0])
    for index in range(one.validation_batches):
        a, b = one.batch("validation", index), seeded.batch("validation", index)
        assert torch.equal(a.inputs, b.inputs)


def test_validation_is_the_text_in_order_without_gaps():
    windows = Windows(CORPUS, 30, 2)
    assert windows.validation_batches == 1199 // 30 // 2 == 19
    read = [windows.batch("validation", i).inputs.flatten() for i in range(19)]
    assert np.array_equal(torch.cat(read), VALIDATION[: 19 * 60])
    with pytest.raises(ValueError, match="index=19: expected one below 19"):
        windows.batch("validation", 19)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 4), slice(1, None, 2), slice(3, 3)])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_are_those_of_the_whole_batch(rows, split):
    windows = Windows(CORPUS, 25, 4, seed=5)
    for whole, part in zip(
        windows.batch(split, 2), windows.batch(split, 2, rows=rows), strict=True
    ):
        assert torch.equal(whole[rows], part)


def test_the_description_has_all_that_the_batches_follow_from():
    windows = Windows(CORPUS, 25, 4, seed=5)
    assert windows.description == CORPUS.description | {"seq_len": 25, "batch": 4, "seed": 5}
    assert (windows.name, windows.vocab_size, windows.batch_size) == ("random", 256, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "seq_len=0: expected an integer >= 1"),
        ((8, 0), "batch=0: expected an integer >= 1"),
        ((8, 1, -1), "seed=-1: expected an integer >= 0"),
        ((1300, 1), "fits into the 1,200 bytes of validation, which hold 0 windows"),
        ((1000, 5), "fits into the 5,000 bytes of train, which hold 4 windows"),
        ((6000, 1), "fits into the 5,000 bytes of train, which hold 0 windows"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Windows(CORPUS, *arguments)


def test_bad_requests_are_named():
    windows = Windows(CORPUS, 8, 1)
    with pytest.raises(ValueError, match="split='test': expected one of train, validation"):
        windows.batch("test", 0)
    with pytest.raises(ValueError, match="index=-1"):
        windows.batch("train", -1)
    with pytest.raises(ValueError, match="rows=3: expected a slice or None"):
        windows.batch("train", 0, rows=3)
