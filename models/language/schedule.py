"""The branches of dilated attention for a length: segments that double, and rates beside them."""

from __future__ import annotations

from models.errors import as_integer

# LongNet's own, for 32,768 tokens: w = 2048, 4096, 8192, 16384, 32768.
_RATES = (1, 2, 4, 6, 12)
_LONGEST_FIRST = 2048


def schedule(seq_len: int, *, shortest: int = 64) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Segment lengths and dilation rates for sequences of up to `seq_len` tokens.

    Segment lengths are the halves `ceil(seq_len / 2^j)`, j = 0, 1, ..., as many as there are of at
    least `shortest` tokens, and one at least. There are five of them up to 32,768 tokens, as in the
    paper; beyond, as many as make the first 2,048 tokens at most. From the shortest on, the
    rates are the paper's, 1, 2, 4, 6, 12, and then the double of the one before. So the first
    branch, of rate 1, holds every token in every head, and where the number of heads is below a
    rate, tokens that no head keeps in that branch are in the first.

    At 32,768 tokens this is LongNet's own setting (arXiv 2307.02486, section 4.1):
    w = 2048, 4096, 8192, 16384, 32768 and r = 1, 2, 4, 6, 12.

    Args:
        seq_len: tokens, >= 1.
        shortest: tokens of the shortest segment worth a branch, >= 1.

    Returns:
        (segment_lengths, dilation_rates), each ascending.

    Raises:
        ValueError: on bad arguments.
    """
    seq_len, shortest = as_integer("seq_len", seq_len), as_integer("shortest", shortest)
    halvings = max(len(_RATES) - 1, (-(-seq_len // _LONGEST_FIRST) - 1).bit_length())
    halves = [-(-seq_len // 2**j) for j in range(halvings + 1)]
    segment_lengths = tuple(w for w in reversed(halves) if w >= shortest) or (seq_len,)
    rates = list(_RATES)
    while len(rates) < len(segment_lengths):
        rates.append(2 * rates[-1])
    return segment_lengths, tuple(rates[: len(segment_lengths)])
