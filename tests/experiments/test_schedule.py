"""A round on several cards, and what it costs: by hand."""

from datetime import UTC, datetime

import pytest

from experiments import cost, record, rounds, schedule
from experiments import grid as grids
from experiments.cards import Gpu
from experiments.cost import hours

# Seconds of all systems of a shape together: longest first to whichever is free are 9 on each.
SHAPES = (6.0, 5.0, 4.0, 3.0)


@pytest.fixture(scope="module")
def tasks():
    """Four shapes of three systems each."""
    found: dict[tuple, list] = {}
    for task in grids.tasks("gpu", ["dilated"]):
        found.setdefault(rounds.shape_of(task.case), []).append(task)
    of_three = [own[:3] for own in found.values() if len(own) >= 3][: len(SHAPES)]
    assert len(of_three) == len(SHAPES)
    return [task for own in of_three for task in own]


@pytest.fixture(scope="module")
def ring(tasks):
    """A case over two cards."""
    of_ring = (task for task in grids.tasks("gpu", ["ring"]) if task.case.is_spread)
    return next(task for task in of_ring if task.case.world_size == 2)


@pytest.fixture(scope="module")
def seconds(tasks, ring):
    known = {}
    for shape, total in enumerate(SHAPES):
        own = tasks[3 * shape : 3 * shape + 3]
        known |= dict(zip((task.name for task in own), (1.0, total - 1.5, 0.5), strict=True))
    return lambda task: 2.0 if task == ring else known[task.name]


def by_shape(found):
    of_shape = {}
    for one in found:
        of_shape.setdefault(rounds.shape_of(one.task.case), []).append(one)
    return of_shape


def test_one_device_takes_a_round_in_random_order(tasks, seconds):
    found = schedule.turns(tasks, seconds, 1, "here round-1", 1)
    assert [one.task for one in found] == rounds.in_random_order(tasks, "here round-1")
    assert {one.devices for one in found} == {(0,)} and schedule.wall_s(found) == 18.0
    assert [one.starts_s for one in found[1:]] == [one.ends_s for one in found[:-1]]


def test_all_systems_of_a_shape_go_to_one_card_the_longest_shape_first(tasks, seconds):
    found = schedule.turns(tasks, seconds, 2, "here round-1", 1)
    assert {one.task for one in found} == {*tasks} and len(found) == len(tasks)
    assert schedule.wall_s(found) == 9.0
    shapes = by_shape(found)
    assert all(len({one.devices for one in own}) == 1 for own in shapes.values())
    starts = {sum(seconds(one.task) for one in own): own[0].starts_s for own in shapes.values()}
    assert starts == dict(zip(SHAPES, (0.0, 0.0, 5.0, 6.0), strict=True))
    for device in ((0,), (1,)):
        own = [one for one in found if one.devices == device]
        assert [one.starts_s for one in own[1:]] == [one.ends_s for one in own[:-1]]
    # One after another on its card, in the random order of the round.
    random = rounds.in_random_order(tasks, "here round-1")
    for own in shapes.values():
        assert [one.task for one in own] == [t for t in random if t in {one.task for one in own}]
        assert [one.starts_s for one in own[1:]] == [one.ends_s for one in own[:-1]]


@pytest.mark.parametrize("count", [2, 3])
def test_a_shape_moves_on_by_a_card_from_round_to_round(tasks, seconds, count):
    cards = []
    for number in range(1, count + 1):
        found = schedule.turns(tasks, seconds, count, f"round-{number}", number)
        cards.append({shape: own[0].devices[0] for shape, own in by_shape(found).items()})
    for shape, first in cards[0].items():
        assert [one[shape] for one in cards] == [(first + k) % count for k in range(count)]


def test_a_ring_holds_its_cards_first_and_counts_each(tasks, ring, seconds):
    found = schedule.turns([*tasks, ring], seconds, 2, "a", 1)
    assert (found[0].task, found[0].devices, found[0].ends_s) == (ring, (0, 1), 2.0)
    assert schedule.wall_s(found) == 11.0
    assert [schedule.cards_of(ring.case, count) for count in (1, 2, 3)] == [1, 2, 2]
    assert schedule.cards_of(tasks[0].case, 3) == 1
    alone = [cost.seconds(ring.case, ring.limits, "cuda", cards=n) for n in (1, 2)]
    assert [one.status for one in alone] == ["unsupported", "ok"]
    device_s = hours.expected_s(ring, "cuda", "", 2)
    assert device_s == pytest.approx(2 * alone[1].total)
    assert hours.expected_s(ring, "cuda", "", 1) == pytest.approx(alone[0].total)


def test_what_fits_into_a_limit_in_the_order_of_value():
    costs = {"a": 5.0, "b": 4.0, "c": 1.0, "d": 0.5}
    alone = {name: [("round-1", (0,), seconds)] for name, seconds in costs.items()}
    assert schedule.fitting(alone, 6.0) == ["a", "c"]
    assert schedule.fitting(alone, 10.5) == [*costs]
    assert schedule.fitting(alone, 0.4) == [] and schedule.fitting({}, 1.0) == []


def test_what_fits_is_done_by_then_on_several_devices():
    asked = {
        "ring": [("round-1", (0, 1), 2.0), ("round-2", (0, 1), 2.0)],
        "a": [("round-1", (0,), 3.0), ("round-2", (1,), 3.0)],
        "b": [("round-1", (1,), 3.0), ("round-2", (0,), 1.0)],
        "c": [("round-2", (0,), 2.0)],
    }
    # Each round takes as long as its longest device: 5 s on both.
    assert schedule.fitting(asked, 10.0) == ["ring", "a", "b", "c"]
    assert schedule.fitting(asked, 9.0) == ["ring", "b"]
    assert schedule.fitting(asked, 6.5) == ["ring", "c"]


def test_the_devices_are_the_cards_of_one_kind_or_the_one_that_is_named(put):
    cards = [Gpu(str(i), f"GPU-{i}", name, "580", 2**30) for i, name in enumerate("AAB")]
    put(*cards)
    assert schedule.devices("cuda") == ("cuda:0", "cuda:1")
    assert schedule.devices("cuda:2") == ("cuda:2",) and schedule.devices("cpu") == ("cpu",)


def test_measured_hours_are_of_what_this_run_began(tmp_path):
    began = datetime(2026, 1, 2, 3, 4, 5, 700000, UTC)
    two = [{"instance": None, "uuid": "GPU-a"}, {"instance": None, "uuid": "GPU-b"}]
    for name, found in {
        "kept": {"started_at": "2026-01-02T03:04:04+00:00", "wall_s": 100.0},
        "own": {"started_at": "2026-01-02T03:04:05+00:00", "wall_s": 10.0},
        "ring": {
            "started_at": "2026-01-02T05:04:06+01:00",
            "wall_s": 20.0,
            "machine": {"cards": two},
        },
        "broken": {"started_at": "today", "wall_s": 1.0},
    }.items():
        record.write(tmp_path / f"{name}.json", found)
    paths = [tmp_path / f"{n}.json" for n in ("kept", "own", "ring", "broken", "none")]
    found = hours.measured(paths, began)
    assert {path.stem: spent for path, spent in found.items()} == {"own": 10.0, "ring": 40.0}
    told = hours.comparison(found.values(), [90.0, 90.0])
    assert told == "measured 2 cases in 0.0139 device-hours, expected 0.05 device-hours"
    assert hours.comparison([], []) == "measured nothing: all records were there"
    assert hours.in_words(7200) == "2 device-hours"


def test_a_ring_moves_when_shapes_begin_and_not_where(tasks, ring, seconds):
    found = by_shape(schedule.turns([*tasks, ring], seconds, 2, "a", 1))
    for shape, own in by_shape(schedule.turns(tasks, seconds, 2, "a", 1)).items():
        assert [one.devices for one in found[shape]] == [one.devices for one in own]
        assert found[shape][0].starts_s == own[0].starts_s + 2.0


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [3] * 4), (3, [3] * 4), (5, [3] * 4), (8, [6, 6]), (9, [9, 3])]
)
def test_jobs_are_whole_shapes_in_their_order(tasks, most, sizes):
    ordered = rounds.in_random_order(tasks, 3)
    found = schedule.bundles(ordered, most)
    assert [name for names in found for name in names] == [task.name for task in ordered]
    assert [len(names) for names in found] == sizes
