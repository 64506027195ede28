"""Two cards of a kind, one 5 % slower: what is paired, what is not, and what the spread says."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from analysis.across import provenance
from analysis.across.variation import deviations, variation
from analysis.records import files
from analysis.records import frame as records
from analysis.statistics.additive import additive_effects
from analysis.statistics.cards import (
    Card,
    effects_with_cards,
    several_of_a_host,
    variance_between,
)
from analysis.statistics.intervals import Side, speedup, time, unpaired_speedup
from analysis.statistics.rounds import (
    At,
    RoundSamples,
    in_shared_rounds,
    joined,
    log_medians,
    log_ratio,
    mean_over,
)
from analysis.statistics.spread import BETWEEN_CARDS, Prior, Spread, estimate
from experiments.rounds import record_files, shape_of
from tests.analysis import synthetic, synthetic_cards

SLOWER, RATIO, SHAPES, ROUNDS = 1.05, 1.25, 40, 4
ON = ("GPU-a", "GPU-b")


def case(rng, ms, cards, noise=0.005, host="h", days=None):
    """A case, of a round on each of these cards, each of an occasion of its own if not said."""
    effects = np.random.default_rng(7).normal(0, 0.02, len(cards))
    found = []
    for number, (card, effect) in enumerate(zip(cards, effects, strict=True)):
        slower = SLOWER if card == ON[1] else 1.0
        one = ms * slower * math.exp(effect + rng.normal(0, noise))
        day = days[number] if days else f"round-{number}"
        found.append(RoundSamples(host, day, f"round-{number}", ((one,),), card))
    return tuple(found)


def machine(seed=0, cards=ON, other_cards=None, days=None):
    """(base, other) of each shape, the base 1.25 times slower; a shape changes its card by turns.

    other_cards: those of the second system where it is not on the same ones.
    """
    rng = np.random.default_rng(seed)
    found = []
    for shape in range(SHAPES):
        ms = math.exp(rng.normal(0, 1))
        on = [cards[(shape + number) % len(cards)] for number in range(ROUNDS)]
        beside = on if other_cards is None else [other_cards[one] for one in on]
        found.append((case(rng, RATIO * ms, on, days=days), case(rng, ms, beside, days=days)))
    return found


def spread_of(pairs):
    return estimate(
        [
            one
            for base, other in pairs
            for one in (
                (log_medians(base), None),
                (log_medians(other), log_medians(base)),
            )
        ]
    )


SWAPPED = dict(zip(ON, ON[::-1], strict=True))


def test_a_ratio_of_one_card_is_the_true_one_and_narrower_than_over_two():
    paired, crossed = machine(), machine(other_cards=SWAPPED)
    spread, over_two = spread_of(paired), spread_of(crossed)
    narrow = [speedup(*pair, spread) for pair in paired]
    wide = [speedup(*pair, over_two) for pair in crossed]
    assert np.mean([RATIO in one for one in narrow]) >= 0.95
    assert np.median([one.value for one in narrow]) == pytest.approx(RATIO, rel=2e-3)
    assert all(one.confidence == 0.95 for one in (*narrow, *wide))
    # As many rounds on the one card as on the other: its factor is in neither.
    assert np.median([one.value for one in wide]) == pytest.approx(RATIO, rel=2e-3)
    assert all(RATIO in one for one in wide)
    widths = [[math.log(one.high / one.low) for one in found] for found in (narrow, wide)]
    assert max(widths[0]) < min(widths[1])


def test_over_two_cards_the_spread_between_them_counts_on_both_sides():
    """By hand: the base always on the fast card, so that 1.25 looks like 1.19."""
    rng = np.random.default_rng(1)
    spread = spread_of(machine())
    base, other = case(rng, RATIO, [ON[0]] * 4, 0), case(rng, 1.0, [ON[1]] * 4, 0)
    found = speedup(base, other, spread)
    assert log_ratio(log_medians(base), log_medians(other)) == {}
    assert found.value == pytest.approx(RATIO / SLOWER) and RATIO in found
    sides = (log_medians(base), log_medians(other))
    parts = [one.of_repetition for side in sides for one in spread.of_its_own(side)]
    half = math.sqrt(sum(stats.t.ppf(0.975, x.freedom) ** 2 * x.variance for x in parts))
    assert math.log(found.high / found.value) == pytest.approx(half)
    of_cards = spread.cards
    assert half > stats.t.ppf(0.975, of_cards.freedom) * math.sqrt(4 * of_cards.variance)


def test_one_round_on_two_cards_has_no_interval():
    spread = spread_of(machine())
    rng = np.random.default_rng(2)
    found = speedup(case(rng, 2.0, [ON[0]], 0), case(rng, 1.0, [ON[1]], 0), spread)
    assert found.value == pytest.approx(2 / SLOWER) and found.confidence == 0


def test_a_spread_of_five_per_cent_is_found():
    found = spread_of(machine())
    effects = {card.card: value for card, value in found.card_effects}
    assert effects[ON[1]] - effects[ON[0]] == pytest.approx(math.log(SLOWER), abs=1e-3)
    assert sum(effects.values()) == pytest.approx(0, abs=1e-12)
    own = math.log(SLOWER) ** 2 / 2
    assert found.cards.freedom == BETWEEN_CARDS.freedom + 1
    assert found.cards.variance == pytest.approx((4 * 0.03**2 + own) / 5, rel=0.02)
    # Neither rounds nor cases are blamed for it.
    alike = spread_of(machine(cards=ON[:1]))
    for name in ("time", "ratio", "common"):
        for level in ("occasion", "round"):
            both = [getattr(getattr(one, name), level) for one in (found, alike)]
            assert both[0].variance == pytest.approx(both[1].variance, rel=0.1)


def test_a_time_counts_the_cards_that_it_was_measured_on():
    spread = Spread(cards=Prior(0.04**2, 5.0))
    rng = np.random.default_rng(3)
    for cards, count in (([ON[0]] * 4, 1), ([*ON, *ON], 2), (["", *ON, ON[0]], 1)):
        (found,) = spread.of_cards(log_medians(case(rng, 1.0, cards)))
        assert (found.of_one, found.count, found.again) == (spread.cards, count, 1)
    # Two hosts differ by their cards too.
    two = log_medians(case(rng, 1.0, [ON[0]] * 2) + case(rng, 1.0, [ON[1]] * 2, host="i"))
    assert spread.of_cards(two) == () and Spread().of_cards(two) == ()
    samples = case(rng, 1.0, [ON[0]] * 4)
    with_cards, without = time(samples, spread), time(samples, Spread())
    more = stats.t.ppf(0.975, 5.0) * math.sqrt(2 * spread.cards.variance)
    half = math.log(without.high / without.value)
    assert math.log(with_cards.high / with_cards.value) == pytest.approx(math.hypot(half, more))


def test_with_one_card_nothing_changes_whether_it_is_named_or_not():
    named, unnamed = machine(cards=ON[:1]), machine(cards=("",))
    spreads = spread_of(named), spread_of(unnamed)
    assert spreads[0].cards == Prior() and spreads[0].card_effects == ()
    assert [(at.anywhere, x) for at, x in spreads[0].effects] == [*spreads[1].effects]
    for ours, theirs in zip(named, unnamed, strict=True):
        assert speedup(*ours, spreads[0]) == speedup(*theirs, spreads[1])
        assert time(ours[0], spreads[0]) == time(theirs[0], spreads[1])
    ours, theirs = (
        unpaired_speedup(*(Side((one,), spread) for one in pairs[0]))
        for pairs, spread in zip((named, unnamed), spreads, strict=True)
    )
    assert ours == theirs and ours.confidence == 0.95


def test_two_sets_of_records_on_two_cards_differ_by_what_cards_do():
    spread = spread_of(machine(days=["a"] * ROUNDS))
    rng = np.random.default_rng(4)
    one, same, other = (
        Side((case(rng, 1.0, [card] * 4, days=["a"] * 4),), spread) for card in (*ON[:1] * 2, ON[1])
    )
    alike = unpaired_speedup(one, same, is_of_one_occasion=True)
    apart = unpaired_speedup(one, other, is_of_one_occasion=True)
    more = stats.t.ppf(0.975, spread.cards.freedom) * math.sqrt(2 * spread.cards.variance)
    halves = [math.log(x.high / x.value) for x in (alike, apart)]
    assert halves[1] > halves[0]
    assert math.sqrt(halves[1] ** 2 - more**2) == pytest.approx(halves[0], rel=0.05)


def test_cards_that_no_case_was_on_both_of_are_told_apart_by_nothing():
    """Each shape on its own card in every round: the card and the shapes are one."""
    rng = np.random.default_rng(5)
    cases = [log_medians(case(rng, 1.0, [ON[n % 2]] * ROUNDS)) for n in range(SHAPES)]
    found = estimate([(one, None) for one in cases])
    assert found.card_effects == () and found.cards == BETWEEN_CARDS
    assert several_of_a_host(cases) and not several_of_a_host(cases[::2])
    # Or all cases on one card in one round, and on the other in the next.
    cases = [log_medians(case(rng, 1.0, ON)) for _ in range(SHAPES)]
    assert estimate([(one, None) for one in cases]).card_effects == ()


def test_three_cards_of_which_no_case_had_all():
    """Without noise: cards of 0, 0.04 and 0.06, rounds of 0 and 0.1, of two cases each."""
    of_card = {"a": 0.0, "b": 0.04, "c": 0.06}
    of_round = {"1": 0.0, "2": 0.1}
    cases = [
        {At("h", "d", one, card): level + of_round[one] + of_card[card] for one, card in on}
        for level, on in (
            (1.0, (("1", "a"), ("2", "b"))),
            (2.0, (("1", "b"), ("2", "a"))),
            (3.0, (("1", "b"), ("2", "c"))),
            (4.0, (("1", "c"), ("2", "b"))),
        )
    ]
    effects, parts = effects_with_cards(cases)
    assert parts == [
        {
            Card("h", "a"): pytest.approx(-0.1 / 3),
            Card("h", "b"): pytest.approx(0.02 / 3),
            Card("h", "c"): pytest.approx(0.08 / 3),
        }
    ]
    squares = (0.1**2 + 0.02**2 + 0.08**2) / 9
    assert variance_between(parts) == (pytest.approx(squares / 2), 2)
    assert variance_between([]) == (0.0, 0)
    at = [At("h", "d", one, card) for one, card in (("1", "a"), ("2", "c"))]
    assert effects[at[1]] - effects[at[0]] == pytest.approx(0.16)
    assert sum(effects.values()) == pytest.approx(0, abs=1e-12)
    # The first two tell a from b, the third alone not from c: of c there is one round alone.
    assert [sorted(card.card for card in part) for part in effects_with_cards(cases[:3])[1]] == [
        ["a", "b", "c"]
    ]
    assert effects_with_cards(cases[2:3])[1] == []


def test_effects_are_those_of_the_fit_by_turns_where_rounds_have_one_card():
    cases = [{At("h", "d", one): x for one, x in own.items()} for own in (
        {"1": 1.0, "2": 3.0}, {"2": 2.0, "3": 5.0}, {"1": 0.5, "3": 6.0},
    )]  # fmt: skip
    by_turns, at_once = additive_effects(cases), effects_with_cards(cases)[0]
    assert at_once == pytest.approx(by_turns, abs=1e-6)


def test_rounds_are_shared_on_whichever_card():
    a, b = At("h", "d", "1", "a"), At("h", "d", "1", "b")
    later = At("h", "d", "2", "a")
    found = in_shared_rounds([{a: 1.0, later: 2.0}, {b: 3.0, later: 4.0}])
    assert found == [{a.anywhere: 1.0, later: 2.0}, {a.anywhere: 3.0, later: 4.0}]
    assert mean_over([{a: 1.0, b: 3.0}, {a: 4.0}]) == {a.anywhere: 3.0}
    assert mean_over([{a: 1.0}, {later: 2.0}]) == {}
    samples = [RoundSamples("h", "d", "1", ((x,),), card) for x, card in ((1.0, "a"), (2.0, "b"))]
    assert joined([samples[:1], samples]) == (
        RoundSamples("h", "d", "1", ((1.0,), (1.0,)), "a"),
        samples[1],
    )


@pytest.fixture(scope="module")
def two_cards(tmp_path_factory):
    """Records of three rounds: a shape changes cards by turns, its systems stay together."""
    root = tmp_path_factory.mktemp("two") / "local"
    shapes: dict[tuple, int] = {}
    for case in synthetic.cases("dilated", "gpu"):
        shape = shapes.setdefault(shape_of(case), len(shapes))
        for number in (1, 2, 3):
            made = synthetic_cards.record(case, synthetic_cards.H200, number)
            if made["status"] == "ok":
                place = (shape + number) % 2
                synthetic_cards.on_card(made, place, SLOWER if place else 1.0)
                synthetic.place(root, made, number).write_text(json.dumps(made))
    return root


def test_records_of_two_cards_show_their_spread(two_cards):
    frame, every = records.load(two_cards), provenance.table_of(files.read(two_cards))
    assert {*frame["cards"]} == {2} and every["card"].nunique() == 2
    ((one, fast), (other, slow)) = frame["spread"].iloc[0].card_effects
    assert slow - fast == pytest.approx(math.log(SLOWER), abs=1e-9)
    assert [one.card, other.card] == synthetic_cards.CARD_UUIDS[:2]
    # A ratio is of one card: exact, as nothing else differs from round to round.
    ratios = [one.ratio for one in deviations(frame, frame["machine"].iloc[0]) if one.ratio]
    assert len(ratios) > 50 and {len(one) for one in ratios} == {3}
    assert max(abs(x) for one in ratios for x in one.values()) < 1e-9
    table = provenance.machines(frame, every)
    place = table.columns.index("Cards")
    assert [row[place] for row in table.rows] == ["2, 5.00 % apart"]
    figure = variation(frame)
    assert [ax.get_xlabel() for ax in figure.axes][2] == "card"
    drawn = figure.axes[2].lines[1].get_ydata()
    assert drawn[1] / drawn[0] == pytest.approx(SLOWER)
    names = [tick.get_text() for tick in figure.axes[2].get_xticklabels()]
    assert names == [uuid[4:12] for uuid in synthetic_cards.CARD_UUIDS[:2]]
    assert figure.axes[2].texts[0].get_text() == "5.00 % apart"


def test_records_of_one_card_show_none(two_cards, tmp_path):
    for path in record_files(two_cards):
        made = json.loads(path.read_text())
        made["machine"]["cards"][0]["uuid"] = synthetic_cards.CARD_UUIDS[0]
        target = tmp_path / "local" / path.relative_to(two_cards)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(made))
    root = tmp_path / "local"
    frame, every = records.load(root), provenance.table_of(files.read(root))
    assert "Cards" not in provenance.machines(frame, every).columns
    assert len(variation(frame).axes) == 2
