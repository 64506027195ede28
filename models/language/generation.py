"""Which token follows: the likeliest, or one drawn."""

from __future__ import annotations

from numbers import Real

import torch


def check_temperature(temperature: float) -> float:
    """An argument `temperature` as a float.

    Args:
        temperature: anything.

    Returns:
        The number.

    Raises:
        ValueError: unless it is finite and at least 0.
    """
    is_number = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if not is_number or not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature!r}: expected a number >= 0")
    return float(temperature)


def next_tokens(
    logits: torch.Tensor, temperature: float, generator: torch.Generator | None
) -> torch.Tensor:
    """Choose the next token of each sequence.

    Args:
        logits: (B, V).
        temperature: 0 for the likeliest, the first of those that are equal; else tokens are drawn
            with the probabilities softmax(logits / temperature).
        generator: of the random numbers, on the logits' device; None for PyTorch's own.

    Returns:
        (B, 1) int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    accumulator = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.to(accumulator)
    # The largest becomes 0 before the division, which a small temperature would let overflow.
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)
