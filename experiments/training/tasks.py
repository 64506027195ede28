"""Questions whose answers stand at a known distance: copying, induction, recall, a needle.

Each is a source (see `batch.Source`) without end, and each batch is drawn anew. A position
that is asked has its answer exactly once before it where the rule of the task looks,
`distances` tokens back, so that accuracy can be told by distance. Distances are spread
logarithmically over what the length allows, an octave having as many as the next; in
`AssociativeRecall` the gaps are, and distances span the pairs too. What blind guessing
gets is `chance_accuracy` in `description`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from experiments.training.batch import IGNORED, NO_DISTANCE, Batch, check_request, generator
from models.errors import as_integer

# Places that are tried for a pair of `Induction` before it is left out.
_TRIES = 16


class Task(ABC):
    """Shared by the tasks: sizes, seed, and targets read off the distances."""

    name: str
    _least_length: int

    def __init__(self, seq_len: int, batch: int, seed: int = 0, *, vocab_size: int = 256) -> None:
        """`batch` sequences of `seq_len` tokens below `vocab_size`.

        Raises:
            ValueError: where an argument is out of range.
        """
        self.seq_len = as_integer("seq_len", seq_len, least=self._least_length)
        self.batch_size = as_integer("batch", batch)
        self.seed = as_integer("seed", seed, least=0)
        self.vocab_size = as_integer("vocab_size", vocab_size, least=4)

    @property
    def description(self) -> dict:
        """What the batches follow from, as JSON, and the accuracy of a blind guess."""
        sizes = {"seq_len": self.seq_len, "batch": self.batch_size, "seed": self.seed}
        return {"task": self.name, **sizes, "vocab_size": self.vocab_size, **self._facts()}

    def batch(self, split: str, index: int, *, rows: slice | None = None) -> Batch:
        """See `batch.Source`."""
        index, rows = check_request(split, index, rows)
        inputs, distances = self._draw(generator(self.seed, split, index))
        inputs, distances = inputs[rows], distances[rows]
        answers = np.arange(self.seq_len) - np.maximum(distances, 0)
        targets = np.take_along_axis(inputs, answers, axis=1)
        targets[distances == NO_DISTANCE] = IGNORED
        return Batch(*map(torch.from_numpy, (inputs.copy(), targets, distances.copy())))

    @abstractmethod
    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and distances, (B, N) int64 each."""

    @abstractmethod
    def _facts(self) -> dict:
        """Parameters of this task, and `chance_accuracy`."""

    def _nothing_asked(self) -> np.ndarray:
        return np.full((self.batch_size, self.seq_len), NO_DISTANCE)

    def _permuted(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """A permutation of 0 ... size - 1 per row, (B, size)."""
        return rng.permuted(np.tile(np.arange(size), (self.batch_size, 1)), axis=1)

    def _bounded(self, name: str, value: int, most: int, of: str, *, least: int = 1) -> int:
        """A parameter that the sizes bound."""
        number = as_integer(name, value, least=least)
        if number > most:
            raise ValueError(f"{name}={number}: expected at most {most}, {of}")
        return number


class Copy(Task):
    """Repeat the first half: L random tokens, a mark (the last token id), the L tokens again.

    Each row has an L of its own, 1 to (N - 1) // 2, and is filled with such blocks, the last
    one cut. From the mark on the next token is asked, L times, each L tokens back.
    """

    name = "copy"
    _least_length = 3

    def _draw(self, rng):
        mark = self.vocab_size - 1
        shape = (self.batch_size, self.seq_len)
        length = log_uniform(rng, 1, (self.seq_len - 1) // 2, self.batch_size)[:, None]
        place = np.arange(self.seq_len) % (2 * length + 1)
        source = np.arange(self.seq_len) - np.where(place > length, length + 1, 0)
        inputs = np.take_along_axis(rng.integers(0, mark, shape), source, axis=1)
        inputs[place == length] = mark
        is_asked = (place >= length) & (place < 2 * length)
        return inputs, np.where(is_asked, length, NO_DISTANCE)

    def _facts(self):
        return {"chance_accuracy": 1 / (self.vocab_size - 1)}


class Induction(Task):
    """A B ... A: what follows? B, as before, for `queries` pairs per row at drawn distances.

    The As are tokens drawn for the row, and no other token of the row is one of them: each
    stands there exactly twice. Everything else is noise from the remaining tokens, of which B
    is one; that A is repeated is all that marks it. The B that answers stands after the second
    A too. Distances: 1 to N - 2. A pair that finds no place in 16 draws is left out: under
    1 in 100 at the default number.
    """

    name = "induction"
    _least_length = 3

    def __init__(
        self,
        seq_len: int,
        batch: int,
        seed: int = 0,
        *,
        vocab_size: int = 256,
        queries: int | None = None,
    ) -> None:
        """queries: at most half the vocabulary; None for N / 32, or a quarter of the vocabulary.

        Raises:
            ValueError: where an argument is out of range.
        """
        super().__init__(seq_len, batch, seed, vocab_size=vocab_size)
        if queries is None:
            queries = max(1, min(self.seq_len // 32, self.vocab_size // 4))
        most, of = self.vocab_size // 2, "half the vocabulary"
        self.queries = self._bounded("queries", queries, most, of)

    def _draw(self, rng):
        tokens = self._permuted(rng, self.vocab_size)
        noise = rng.integers(self.queries, self.vocab_size, (self.batch_size, self.seq_len + 1))
        inputs = np.take_along_axis(tokens, noise, axis=1)
        distances = self._nothing_asked()
        is_taken = np.zeros(inputs.shape, bool)
        every = np.arange(self.batch_size)
        for pair in range(self.queries):
            distance = log_uniform(rng, 1, self.seq_len - 2, self.batch_size)
            tries = rng.integers(1, self.seq_len - distance[:, None], (self.batch_size, _TRIES))
            # Where A, B and A, B would stand, by the place of the first B: (B, tries, 4).
            steps = distance[:, None] * (0, 0, 1, 1) + (-1, 0, 0, 1)
            places = tries[..., None] + steps[:, None]
            is_free = ~is_taken[every[:, None, None], places].any(-1)
            rows = np.flatnonzero(is_free.any(-1))
            before, first, query, after = places[rows, is_free.argmax(-1)[rows]].T
            is_taken[rows[:, None], np.stack([before, first, query, after], 1)] = True
            inputs[rows, before] = inputs[rows, query] = tokens[rows, pair]
            inputs[rows, after] = inputs[rows, first]
            distances[rows, query] = distance[rows]
        return inputs[:, :-1], distances

    def _facts(self):
        return {"queries": self.queries, "chance_accuracy": 1 / (self.vocab_size - self.queries)}


class AssociativeRecall(Task):
    """Multi-query associative recall (MQAR; Zoology, arXiv 2312.04927).

    `pairs` keys, each followed by its value, then each key once more, at every second position
    at most: its value is the target there. Keys are distinct tokens of the lower half of the
    vocabulary, values any of the upper half, and so is what fills the rest. The query in the
    g-th such position after the pairs has a weight of 1 / g, each being drawn once at
    most; the published code's default is g ** -0.99. Unlike there, values are drawn with
    replacement, so that none can be told by the others, and nothing that fills is a key.
    Who has read the row's pairs without knowing which key had which value does best to answer
    with the commonest of their values: `commonest_value_accuracy`.
    """

    name = "associative_recall"
    _least_length = 4

    def __init__(
        self,
        seq_len: int,
        batch: int,
        seed: int = 0,
        *,
        vocab_size: int = 256,
        pairs: int | None = None,
    ) -> None:
        """pairs: at most N / 4 and half the vocabulary; None for N / 16, or a quarter of it.

        Raises:
            ValueError: where an argument is out of range.
        """
        super().__init__(seq_len, batch, seed, vocab_size=vocab_size)
        if pairs is None:
            pairs = max(1, min(self.seq_len // 16, self.vocab_size // 4))
        most = min(self.seq_len // 4, self.vocab_size // 2)
        of = "a quarter of seq_len and half the vocabulary"
        self.pairs = self._bounded("pairs", pairs, most, of)

    def _draw(self, rng):
        lower, context = self.vocab_size // 2, 2 * self.pairs
        keys = self._permuted(rng, lower)[:, : self.pairs]
        inputs = rng.integers(lower, self.vocab_size, (self.batch_size, self.seq_len))
        inputs[:, 0:context:2] = keys
        gaps = np.arange((self.seq_len - context) // 2)
        # The largest of log-weights plus Gumbel noise: a weighted draw without repetition.
        lots = rng.gumbel(size=(self.batch_size, len(gaps))) - np.log(gaps + 1)
        drawn = np.argpartition(-lots, self.pairs - 1, axis=1)[:, : self.pairs]
        queries = context + 2 * rng.permuted(drawn, axis=1)
        np.put_along_axis(inputs, queries, keys, axis=1)
        distances = self._nothing_asked()
        values = np.arange(1, context, 2)
        np.put_along_axis(distances, queries, queries - values, axis=1)
        return inputs, distances

    def _facts(self):
        values = self.vocab_size - self.vocab_size // 2
        return {
            "pairs": self.pairs,
            "chance_accuracy": 1 / values,
            "commonest_value_accuracy": expected_largest_count(self.pairs, values) / self.pairs,
        }


class Needle(Task):
    """One mark (the last token id), key and value in noise; at the end mark and key again.

    The value is asked, at the last position. Distances: 2 to N - 3, or always `distance`.
    Noise, key and value are any tokens but the mark.
    """

    name = "needle"
    _least_length = 5

    def __init__(
        self,
        seq_len: int,
        batch: int,
        seed: int = 0,
        *,
        vocab_size: int = 256,
        distance: int | None = None,
    ) -> None:
        """distance: tokens from the last position back to the value; None to draw one per row.

        Raises:
            ValueError: where an argument is out of range.
        """
        super().__init__(seq_len, batch, seed, vocab_size=vocab_size)
        if distance is not None:
            distance = self._bounded("distance", distance, seq_len - 3, "seq_len - 3", least=2)
        self.distance = distance

    def _draw(self, rng):
        mark, rows = self.vocab_size - 1, np.arange(self.batch_size)
        inputs = rng.integers(0, mark, (self.batch_size, self.seq_len))
        drawn = log_uniform(rng, 2, self.seq_len - 3, self.batch_size)
        distance = drawn if self.distance is None else np.full_like(drawn, self.distance)
        value = self.seq_len - 1 - distance
        inputs[rows, value - 2] = inputs[:, -2] = mark
        inputs[:, -1] = inputs[rows, value - 1]
        distances = self._nothing_asked()
        distances[:, -1] = distance
        return inputs, distances

    def _facts(self):
        return {"distance": self.distance, "chance_accuracy": 1 / (self.vocab_size - 1)}


TASKS = {task.name: task for task in (Copy, Induction, AssociativeRecall, Needle)}


def expected_largest_count(draws: int, kinds: int) -> float:
    """How often the commonest of `kinds` equally likely kinds comes in so many draws, on average.

    By exponential generating functions: the draws in which no kind comes more than m times are
    draws! times the coefficient of x^draws in (1 + x + x^2/2! + ... + x^m/m!)^kinds.
    """
    inverse = np.array([1 / math.factorial(count) for count in range(draws + 1)])
    outcomes = math.factorial(draws) / kinds**draws
    expected = 0.0
    for most in range(draws):
        powers = np.array([1.0])
        for _ in range(kinds):
            powers = np.convolve(powers, inverse[: most + 1])[: draws + 1]
        within = outcomes * powers[draws] if len(powers) > draws else 0.0
        expected += 1.0 - within
    return expected


def log_uniform(rng: np.random.Generator, least: int, most: int, size: int) -> np.ndarray:
    """Integers from `least` (>= 1) to `most`, both included; d has a weight of log(1 + 1 / d).

    Returns:
        (size,) int64.
    """
    drawn = np.exp(rng.uniform(np.log(least), np.log(most + 1), size)).astype(np.int64)
    return np.clip(drawn, least, most)
