"""Scaling fits: known exponents, choice of model, few points, rounds and censoring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from analysis.statistics import curves, scaling
from analysis.statistics.rounds import At, RoundSamples
from analysis.statistics.scaling import MODELS, fit
from analysis.statistics.spread import PLAIN, Component, Levels, Prior, Spread

LENGTHS = 2 ** np.arange(9, 16)  # 512..32768
TRUTHS = {  # ms: a launch overhead that is half or more of the time at 512
    "linear": (1.0, lambda n: 0.5 + 2.5e-4 * n),
    "quadratic": (2.0, lambda n: 0.5 + 1e-7 * n**2.0),
}
FAMILIES = {"linear": {"c + b n"}, "quadratic": {"c + b n^2", "c + b n + d n^2"}}


def noisy(truth, rng, lengths=LENGTHS, sigma=0.03):
    return (truth(lengths) * np.exp(sigma * rng.standard_normal(len(lengths)))).tolist()


def in_rounds(truth, rng, between=0.03, count=3):
    """Times in rounds of which all are faster or slower, and each point in its own way too."""
    effect = 0.2 * rng.standard_normal(count)
    effect = effect + between * rng.standard_normal((len(LENGTHS), count))
    samples = truth(LENGTHS)[:, None, None] * np.exp(effect)[:, :, None] * np.linspace(0.9, 1.1, 5)
    return [
        tuple(
            RoundSamples("", f"day-{number}", f"round-{number}", (tuple(own.tolist()),))
            for number, own in enumerate(point, start=1)
        )
        for point in samples
    ]


def test_linear_kernel_with_overhead_where_log_log_fails():
    exponent, truth = TRUTHS["linear"]
    straight = np.polyfit(np.log(LENGTHS), np.log(truth(LENGTHS)), 1)[0]
    assert straight < 0.85
    values = [
        fit(LENGTHS, noisy(truth, np.random.default_rng(seed)), draws=2).exponent.value
        for seed in range(20)
    ]
    assert np.mean(values) == pytest.approx(exponent, abs=0.02)
    found = fit(LENGTHS, in_rounds(truth, np.random.default_rng(1)), PLAIN)
    assert found.exponent.value == pytest.approx(exponent, abs=0.05)
    assert exponent in found.exponent
    assert found.exponent.high - found.exponent.low < 0.25


def test_quadratic_kernel_with_overhead():
    exponent, truth = TRUTHS["quadratic"]
    for seed in range(20):
        found = fit(LENGTHS, noisy(truth, np.random.default_rng(seed)), draws=2)
        assert found.exponent.value == pytest.approx(exponent, abs=0.1)


@pytest.mark.parametrize("kind", TRUTHS)
@pytest.mark.parametrize("points", [4, 5, 7])
def test_exponent_interval_covers(kind, points):
    exponent, truth = TRUTHS[kind]
    rng = np.random.default_rng(points)
    lengths = LENGTHS[:points]
    hits = [
        exponent in fit(lengths, noisy(truth, rng, lengths), seed=seed, draws=100).exponent
        for seed in range(30)
    ]
    assert np.mean(hits) >= 0.85  # nominal 0.95, of 30


@pytest.mark.parametrize("kind", TRUTHS)
def test_rounds_that_differ_are_covered(kind):
    exponent, truth = TRUTHS[kind]
    rng = np.random.default_rng(8)
    found = [fit(LENGTHS, in_rounds(truth, rng), PLAIN, draws=100) for _ in range(30)]
    assert np.mean([exponent in one.exponent for one in found]) >= 0.85
    assert {one.drawn for one in found} == {"rounds", "residuals"}
    assert all(one.margin == one.exponent for one in found)


def test_a_slower_round_moves_no_exponent():
    flat = in_rounds(TRUTHS["quadratic"][1], np.random.default_rng(0), between=0.0)
    found = fit(LENGTHS, flat, PLAIN)
    assert found.exponent.value == pytest.approx(2.0, abs=1e-3)
    assert found.exponent.high - found.exponent.low < 1e-3


def test_noise_of_a_point_is_what_is_left_beside_length_and_round():
    logs = np.log([[1.0, 2.0], [4.0, 10.0], [16.0, 32.0]])
    # Beside both means a third of log 1.25 is left at the second length, with the opposite sign in
    # the other round, and half of that at the others.
    left = np.array([[1, -1], [-2, 2], [1, -1]]) * np.log(1.25) / 6
    own = (left**2).sum() / 2
    rounds = [At("", "a", "a"), At("", "b", "b")]
    (found,) = scaling._noise(logs, rounds, PLAIN).components
    assert (found.of_one, found.count, found.again) == (Prior(pytest.approx(own), 2), 2, 1)
    (moderated,) = scaling._noise(
        logs, rounds, Spread(ratio=Levels(occasion=Prior(0.08, 6.0)))
    ).components
    assert moderated.of_one == Prior(pytest.approx((6 * 0.04 + 2 * own) / 8), 8)


def test_points_of_one_occasion_deviate_by_what_differs_between_occasions_too():
    between = Prior(0.02, 5.0)
    noise = scaling._noise(
        np.log([[1.0, 1.1], [2.0, 2.1], [4.0, 4.0]]),
        [At("", "a", "a"), At("", "a", "b")],
        Spread(ratio=Levels(occasion=between)),
    )
    own, beyond = noise.components
    assert (own.count, own.again) == (2, 2) and own.of_one.freedom == 2
    assert beyond == Component(between.halved(), 1, 1)
    assert noise.of_value == pytest.approx(np.sqrt(own.of_one.variance / 2 + 0.01))
    # Student's t of 2 and 5 degrees: the first has no variance, so quantiles are compared.
    rng = np.random.default_rng(0)
    for drawn, factors in ((noise.of_repetition, (1, 2)), (noise.of_next, (0.5, 1))):
        found = drawn((40_000, 1), rng)
        parts = [
            np.sqrt(factor * one.of_one.variance) * rng.standard_t(one.of_one.freedom, 40_000)
            for factor, one in zip(factors, noise.components, strict=True)
        ]
        expected = np.quantile(np.abs(sum(parts)), (0.5, 0.95))
        assert np.quantile(np.abs(found), (0.5, 0.95)) == pytest.approx(expected, rel=0.03)


def test_times_of_one_round_have_no_interval_and_are_judged_by_their_residuals():
    rng = np.random.default_rng(3)
    alone = [samples[:1] for samples in in_rounds(TRUTHS["quadratic"][1], rng)]
    found = fit(LENGTHS, alone, PLAIN)
    plain = fit(LENGTHS, [one[0].replicates[0][2] for one in alone])
    assert found.drawn == "nothing" and len(found.draws) == 0
    assert found.exponent.confidence == 0 and np.isnan(found.exponent.low)
    assert found.exponent.value == plain.exponent.value
    assert (found.margin.low, found.margin.high) == (plain.exponent.low, plain.exponent.high)
    assert found.margin.confidence == 0 and plain.margin == plain.exponent
    assert np.isnan(found.band(LENGTHS)).all() and found.band(LENGTHS).shape == (2, 7)


def test_draws_that_are_alike_are_fitted_once_and_as_each_by_itself(monkeypatch):
    x, log_y = np.log(LENGTHS[:3]), np.log([1.0, 2.5, 4.0])
    theta = curves.solve("a n^k", x, log_y)
    picks = np.random.default_rng(0).integers(3, size=(500, 3))
    noisy = log_y + 0.1 * (picks - 1)
    each = curves.descend("a n^k", x, noisy, np.tile(theta, (500, 1)))
    asked, descend = [], curves.descend

    def counted(model, x, log_y, start):
        asked.append(len(log_y))
        return descend(model, x, log_y, start)

    monkeypatch.setattr(curves, "descend", counted)
    assert np.array_equal(scaling._refitted("a n^k", theta, x, noisy), each)
    assert asked == [27]


def test_points_are_compared_in_the_rounds_that_all_have():
    values = in_rounds(TRUTHS["linear"][1], np.random.default_rng(5))
    short = [values[0][:2], *values[1:]]
    assert (
        fit(LENGTHS, short, PLAIN).exponent
        == fit(LENGTHS, [one[:2] for one in values], PLAIN).exponent
    )
    apart = [values[0][:1], *(one[1:] for one in values[1:])]
    assert fit(LENGTHS, apart, PLAIN).drawn == "nothing"


@pytest.mark.parametrize("kind", TRUTHS)
def test_aicc_picks_the_family(kind):
    truth = TRUTHS[kind][1]
    chosen = [
        fit(LENGTHS, noisy(truth, np.random.default_rng(seed)), draws=2).model for seed in range(40)
    ]
    assert np.mean([model in FAMILIES[kind] for model in chosen]) >= 0.9


def test_weights_sum_to_one_and_parameters_are_recovered():
    found = fit(LENGTHS, (0.2 + 3e-4 * LENGTHS + 2e-8 * LENGTHS**2.0).tolist())
    assert found.model == "c + b n + d n^2" and found.selection == "AICc"
    assert found.parameters == pytest.approx({"c": 0.2, "b": 3e-4, "d": 2e-8}, rel=1e-5)
    assert sum(found.aicc_weights.values()) == pytest.approx(1.0)
    assert found.not_compared == {}
    assert found.holdout_relative_error == pytest.approx(0.0, abs=1e-6)


def test_exact_linear_memory():
    found = fit(LENGTHS, [1024 * int(n) for n in LENGTHS])
    assert found.model in {"c + b n", "a n^k"}
    assert found.exponent.low == pytest.approx(1.0, abs=1e-4)
    assert found.exponent.high == pytest.approx(1.0, abs=1e-4)
    assert found.predict(4096) == pytest.approx(4096 * 1024, rel=1e-6)
    assert found.predict(4096).shape == ()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", TRUTHS)
def test_solver_reaches_the_minimum_that_scipy_finds(model, kind):
    log_n = np.log(LENGTHS / LENGTHS[-1])
    log_y = np.log(noisy(TRUTHS[kind][1], np.random.default_rng(2)))
    powers = [power for _, power in MODELS[model]]
    extra = [2.0] if powers[-1] is None else []

    def residuals(p):
        terms = [
            a * np.exp((p[-1] if power is None else power) * log_n)
            for a, power in zip(p, powers, strict=False)
        ]
        return np.log(np.sum(terms, axis=0) + 1e-300) - log_y

    start = [np.exp(log_y[-1 if power != 0 else 0]) / 2 for power in powers] + extra
    scipy_fit = least_squares(
        residuals, start, bounds=(0, np.inf), x_scale=start, xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    ours = np.array(curves.solve(model, np.log(LENGTHS), log_y))
    curve = curves.log_curves(model, ours[None], np.log(LENGTHS))[0][0]
    assert ((curve - log_y) ** 2).sum() <= 2 * scipy_fit.cost * (1 + 1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.0, 2.0), st.floats(1e-3, 1e3), st.floats(0.5, 3.0), st.sampled_from([1e-3, 1, 1e6])
)
def test_noiseless_power_is_recovered_in_any_unit(overhead, scale, k, unit):
    y = unit * scale * (overhead + (LENGTHS / 4096) ** k)
    found = fit(LENGTHS, y.tolist(), draws=2)
    assert found.exponent.value == pytest.approx(k, abs=2e-3)
    assert np.all([value >= 0 for value in found.parameters.values()])


def test_holdout_error_is_signed_and_large_for_a_kink():
    y = 1e-3 * LENGTHS.astype(float)
    y[-1] *= 2  # runs out of cache at the last length
    found = fit(LENGTHS, y.tolist(), models=["c + b n"])
    assert found.holdout_relative_error == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("points", "compared"),
    [
        (5, {"c + b n", "c + b n^2", "a n^k"}),
        (6, set(MODELS)),
    ],
)
def test_aicc_only_offers_models_with_points_to_spare(points, compared):
    lengths = LENGTHS[:points]
    found = fit(lengths, noisy(TRUTHS["linear"][1], np.random.default_rng(0), lengths))
    assert set(found.aicc_weights) == compared
    assert set(found.not_compared) == set(MODELS) - compared
    assert found.selection == "AICc" and found.exponent_model == "c + a n^k"
    assert all("AICc needs 6" in why for why in found.not_compared.values())


@pytest.mark.parametrize(("points", "model"), [(3, "a n^k"), (4, "c + a n^k")])
def test_too_few_points_for_aicc_are_said_to_be(points, model):
    found = fit(LENGTHS[:points], TRUTHS["linear"][1](LENGTHS[:points]).tolist())
    assert found.aicc_weights == {} and set(found.not_compared) == set(MODELS)
    assert found.model == found.exponent_model == model
    assert found.selection == f"not chosen: {points} points, AICc needs 5"
    assert found.selection in found.describe()


def test_four_noisy_points_have_a_wide_interval():
    lengths, rng = LENGTHS[:4], np.random.default_rng(0)
    found = fit(lengths, noisy(TRUTHS["linear"][1], rng, lengths))
    assert found.exponent.high - found.exponent.low > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([512, 1024], [1.0, 2.0]), "at least 3 distinct"),
        (([512, 512, 1024], [1.0, 1.0, 2.0]), "at least 3 distinct"),
        (([0, 512, 1024], [1.0, 1.0, 2.0]), "lengths > 0"),
        (([1, 2, 3], [1.0, 2.0]), "values: expected 3"),
        (([1, 2, 3], [1.0, 2.0, 0.0]), "finite numbers > 0"),
        (([1, 2, 3], [1.0, 2.0, float("nan")]), "finite numbers > 0"),
        (([1, 2, 3], [(RoundSamples("", "a", "a", ((1.0,),)),)] * 3), "spread: expected"),
        (([1, 2, 3], [(RoundSamples("", "a", "a", ((0.0,),)),)] * 3, PLAIN), "numbers > 0"),
        (([1, 2, 3], [()] * 3, PLAIN), "one or more distinct rounds"),
    ],
)
def test_bad_points_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(*arguments)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="models: expected some of"):
        fit(LENGTHS, LENGTHS.tolist(), models=["n log n"])
    with pytest.raises(ValueError, match="to choose among"):
        fit([1, 2, 3], [1.0, 2.0, 3.0], models=["c + b n", "c + b n^2"])
    with pytest.raises(ValueError, match=r"expected > 3 for 'c \+ a n\^k', got 3"):
        fit([1, 2, 3], [1.0, 2.0, 3.0], models=["c + a n^k"])


def test_censored_points_are_listed_and_change_nothing():
    values = in_rounds(TRUTHS["quadratic"][1], np.random.default_rng(0))
    plain = fit(LENGTHS, values, PLAIN)
    with_oom = fit(LENGTHS, values, PLAIN, censored=[(65536, "oom"), (131072, "timeout")])
    assert with_oom.censored == ((65536, "oom"), (131072, "timeout")) and plain.censored == ()
    assert with_oom.exponent == plain.exponent and with_oom.aicc_weights == plain.aicc_weights
    assert with_oom.n_range == plain.n_range == (512, 32768)
    assert np.array_equal(with_oom.draws, plain.draws)
    assert "censored: 65536 (oom), 131072 (timeout)" in with_oom.describe()


def test_describe_names_power_law_and_choice():
    found = fit(LENGTHS, noisy(TRUTHS["quadratic"][1], np.random.default_rng(0)))
    k = found.exponent
    weight = found.aicc_weights["c + b n^2"]
    assert found.describe() == (
        f"c + a n^{k.value:.2f} [{k.low:.2f}, {k.high:.2f}]; "
        f"AICc takes c + b n^2 (weight {weight:.2f})"
    )


def test_fit_is_seeded_and_free_of_the_order_of_points():
    values = in_rounds(TRUTHS["linear"][1], np.random.default_rng(0))
    once = fit(LENGTHS, values, PLAIN, seed=3)
    assert fit(LENGTHS.tolist(), values, PLAIN, seed=3) is once  # remembered
    scaling._fit.cache_clear()
    assert fit(LENGTHS, values, PLAIN, seed=3) == once
    back = fit(LENGTHS[::-1], values[::-1], PLAIN, seed=3)
    assert back.parameters == pytest.approx(once.parameters)


def test_what_few_ask_for_is_solved_when_asked(monkeypatch):
    solved, drawn = [], []
    solve, descend = curves.solve, curves.descend

    def counted_solve(model, x, log_y):
        solved.append((model, x.size))
        return solve(model, x, log_y)

    def counted_descend(model, x, log_y, start):
        if log_y.ndim == 2:
            drawn.append(model)
        return descend(model, x, log_y, start)

    monkeypatch.setattr(curves, "solve", counted_solve)
    monkeypatch.setattr(curves, "descend", counted_descend)
    scaling._fit.cache_clear()
    found = fit(LENGTHS, noisy(TRUTHS["quadratic"][1], np.random.default_rng(0)), draws=20)
    assert found.model == "c + b n^2" and found.exponent_model == "c + a n^k"
    assert sorted(solved) == sorted((model, 7) for model in MODELS)
    assert drawn == ["c + a n^k"]
    assert found.draws.shape == (20, 2) and found.draws is found.draws
    assert drawn == ["c + a n^k", "c + b n^2"]
    assert abs(found.holdout_relative_error) < 0.2 and found.holdout_relative_error != 0
    assert solved[5:] == [("c + b n^2", 6)]


def test_prediction_and_curves_take_arrays():
    found = fit(LENGTHS, TRUTHS["linear"][1](LENGTHS).tolist(), draws=10)
    grid = LENGTHS.reshape(7, 1) * np.ones((1, 2))
    assert found.predict(grid) == pytest.approx(TRUTHS["linear"][1](grid), rel=1e-4)
    assert found.sample_curves(grid).shape == (10, 7, 2)
    with pytest.raises(ValueError, match="lengths > 0"):
        found.predict([0, 1])
