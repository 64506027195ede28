"""The learning rate by the step, as numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.training.config import OptimiserConfig
from experiments.training.schedule import learning_rate


def test_warm_up_then_half_a_cosine():
    optimiser = OptimiserConfig(learning_rate=0.8, warm_up_steps=4, final_fraction=0.25)
    found = [learning_rate(step, 12, optimiser) for step in range(1, 13)]
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    # Half way down: the mean of 0.8 and 0.2. A quarter: by cos(pi / 4).
    assert found[7] == pytest.approx(0.5)
    assert found[5] == pytest.approx(0.5 + 0.3 * math.sqrt(0.5))
    assert found[11] == pytest.approx(0.2)


@given(st.integers(1, 200), st.floats(0, 1), st.data())
def test_it_rises_to_the_highest_and_falls_to_the_fraction(steps, fraction, data):
    warm_up = data.draw(st.integers(0, steps))
    optimiser = OptimiserConfig(learning_rate=2, warm_up_steps=warm_up, final_fraction=fraction)
    found = [learning_rate(step, steps, optimiser) for step in range(1, steps + 1)]
    rising, falling = found[:warm_up], found[warm_up:]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert all(0 < rate <= 2 for rate in rising) and all(0 <= rate <= 2 for rate in falling)
    if warm_up:
        assert rising[-1] == 2
    if falling:
        assert falling[-1] == pytest.approx(2 * fraction)
