"""An n-gram model of bytes: what a neural model of text has to beat.

Interpolated, modified Kneser-Ney smoothing of Chen and Goodman, "An empirical study of smoothing
techniques for language modeling", Computer Speech and Language 13 (1999), 359-394; the
uniform distribution lies below the unigrams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.errors import as_integer

_BYTES = 256
# Seven bytes of a gram fit into an int64.
_HIGHEST_ORDER = 7
# Where no gram has a count that the closed form needs, as with at most 256 unigrams.
_WITHOUT_COUNTS = (0.5, 1.0, 1.5)
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Level:
    """The grams of one length, sorted, as numbers of base 256.

    discounted: of a gram h w, (c(h w) - D) / c(h). left_over: of a context h, the
    probability that the discounts took, which the next shorter context shares out.
    """

    grams: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    left_over: np.ndarray
    discounts: tuple[float, float, float]


class KneserNey:
    """P(byte | the `order` - 1 bytes before it), fitted on a text.

    levels: for grams of 1, 2, ... `order` bytes. The longest are counted as they occur, the
    shorter ones by how many different bytes stand before them.
    """

    def __init__(self, text: np.ndarray, order: int = 3) -> None:
        """Fit on `text`, (L,) uint8; 8 MiB take about a second and 0.5 GB at most.

        Args:
            text: the bytes, at least `order` of them.
            order: the length of the longest grams, 1 to 7.

        Raises:
            ValueError: where an argument is out of range.
        """
        if as_integer("order", order) > _HIGHEST_ORDER:
            raise ValueError(f"order={order}: expected 1 to {_HIGHEST_ORDER}")
        check_text(text, least=order)
        self.order = order
        self.levels: list[Level] = []
        grams, counts = np.unique(_grams(text, order), return_counts=True)
        for length in range(order, 0, -1):
            self.levels.insert(0, _level(grams, counts))
            shorter = grams & _mask(length - 1)
            grams, counts = np.unique(shorter, return_counts=True)

    def probabilities(self, context: bytes) -> np.ndarray:
        """P of each byte after `context`, (256,) float64, which sum to 1.

        context: of which the last `order` - 1 bytes count; zero bytes stand before a shorter one.
        """
        text = np.frombuffer(context.rjust(self.order - 1, b"\0"), np.uint8)
        context_number = 0
        for byte in text[len(text) - (self.order - 1) :].tolist():
            context_number = context_number * _BYTES + byte
        return self._probability(context_number * _BYTES + np.arange(_BYTES))

    def bits_per_byte(self, text: np.ndarray) -> float:
        """Mean of -log2 P over all bytes of `text`, (L,) uint8, which zero bytes stand before.

        Raises:
            ValueError: where `text` is empty or no such array.
        """
        check_text(text, least=1)
        grams = _grams(np.pad(text, (self.order - 1, 0)), self.order)
        bits = 0.0
        for first in range(0, len(grams), _CHUNK):
            bits -= np.log2(self._probability(grams[first : first + _CHUNK])).sum()
        return float(bits / len(grams))

    def _probability(self, grams: np.ndarray) -> np.ndarray:
        """P of the last byte of each gram of `order` bytes after the others."""
        probability = np.full(len(grams), 1 / _BYTES)
        for length, level in enumerate(self.levels, 1):
            gram = grams & _mask(length)
            left_over = _look_up(level.contexts, level.left_over, gram // _BYTES, absent=1.0)
            discounted = _look_up(level.grams, level.discounted, gram, absent=0.0)
            probability = discounted + left_over * probability
        return probability


def check_text(text: np.ndarray, *, least: int) -> None:
    """ValueError unless it is one row of at least `least` bytes."""
    is_row = isinstance(text, np.ndarray) and text.dtype == np.uint8 and text.ndim == 1
    if not is_row or len(text) < least:
        found = f"{text.dtype} {text.shape}" if isinstance(text, np.ndarray) else type(text)
        raise ValueError(f"text={found}: expected a uint8 array of one row, {least} bytes or more")


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What is taken of counts of 1, of 2 and of 3 or more: Chen and Goodman's closed form.

    With n_c grams of count c and Y = n_1 / (n_1 + 2 n_2): D_c = c - (c + 1) Y n_(c+1) / n_c.
    0.5, 1 or 1.5 (as KenLM's `--discount_fallback`) where n_1, n_c or n_(c+1) is zero, or the
    form gives a D_c outside 0 to c.

    Args:
        counts: of the grams, positive integers.
    """
    of_count = np.bincount(np.minimum(counts, 5), minlength=6).tolist()
    found = list(_WITHOUT_COUNTS)
    for c in (1, 2, 3):
        if of_count[1] and of_count[c] and of_count[c + 1]:
            share = of_count[1] / (of_count[1] + 2 * of_count[2])
            closed = c - (c + 1) * share * of_count[c + 1] / of_count[c]
            found[c - 1] = closed if 0 <= closed <= c else found[c - 1]
    return tuple(found)


def _level(grams: np.ndarray, counts: np.ndarray) -> Level:
    """One level from its sorted grams and their counts."""
    taken_of = discounts(counts)
    taken = np.array((0.0, *taken_of))[np.minimum(counts, 3)]
    context = grams // _BYTES
    starts = np.flatnonzero(np.diff(context, prepend=-1))
    totals = np.add.reduceat(counts, starts)
    sizes = np.diff(starts, append=len(grams))
    return Level(
        grams=grams,
        discounted=(counts - taken) / np.repeat(totals, sizes),
        contexts=context[starts],
        left_over=np.add.reduceat(taken, starts) / totals,
        discounts=taken_of,
    )


def _grams(text: np.ndarray, order: int) -> np.ndarray:
    """The grams at each place of a text, as numbers of base 256, (L - order + 1,) int64."""
    places = len(text) - order + 1
    grams = np.zeros(places, np.int64)
    for offset in range(order):
        grams *= _BYTES
        grams += text[offset : offset + places]
    return grams


def _mask(length: int) -> int:
    """The last `length` bytes of a number."""
    return _BYTES**length - 1


def _look_up(
    keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, *, absent: float
) -> np.ndarray:
    """The value of each wanted key, `absent` where `keys`, sorted, has none."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], absent)
