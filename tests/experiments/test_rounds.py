"""Rounds: where records lie, in which order cases are measured, and what stands aside."""

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from experiments import grid as grids
from experiments import machine, record, rounds
from experiments.digest import code_digest


@pytest.fixture
def put(tmp_path):
    """Write what is read of a record; returns its path."""

    def write(round_, case, status="ok", started_at="2026-11-28T12:00:00+01:00", **changes):
        path = rounds.path_of(tmp_path, "m", round_, case)
        software = {"code_digest": code_digest(case.variant)}
        found = {"schema_version": 2, "status": status, "software": software}
        record.write(path, {**found, "started_at": started_at, **changes})
        return path

    return write


def test_a_record_lies_by_machine_round_and_case(tmp_path, case):
    path = rounds.path_of(tmp_path, "m", rounds.name_of(3), case(variant="dense"))
    assert path.relative_to(tmp_path).as_posix() == (
        "m/round-3/dense_b2_n40_h4+2_d8_float32_causal_forward.json"
    )


def test_a_published_round_is_named_in_utc():
    began = datetime(2026, 11, 28, 12, 30, 5, 999, tzinfo=timezone(timedelta(hours=1)))
    assert rounds.name_at(began) == "2026-11-28T113005Z"
    assert rounds.name_at(began.replace(tzinfo=None)) == "2026-11-28T123005Z"
    for name in ("round-1", "round-120", "2026-11-28T113005Z"):
        assert rounds.LOCAL_NAME.fullmatch(name) or rounds.PUBLISHED_NAME.fullmatch(name)
    for name in ("round-0", "round-01", "round-", "outdated", "2026-11-28", "dilated"):
        assert not (rounds.LOCAL_NAME.fullmatch(name) or rounds.PUBLISHED_NAME.fullmatch(name))


def test_what_is_no_record_is_not_listed(tmp_path, put, case):
    path = put("round-2", case())
    first = put("round-1", case(seed=1))
    for name in ("outdated/round-1/a@b.json", "round-1/.partial.json", "campaigns/x/tiles.txt"):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text("{}")
    assert rounds.record_files(tmp_path) == [first, path]
    assert rounds.record_files(path) == [path]
    # A folder above that is called so is no reason.
    assert rounds.record_files(tmp_path / "m" / "outdated") != []


SHAPE = ("batch", "seq_len", "heads", "head_dim", "dtype", "is_causal", "pass_", "recipe")


@pytest.mark.parametrize("tier", ["laptop", "gpu"])
def test_the_order_is_a_permutation_that_keeps_shapes_together(tier):
    tasks = grids.tasks(tier)
    drawn = rounds.in_random_order(tasks, "a host round-1")
    assert Counter(drawn) == Counter(tasks) and drawn != tasks
    shapes = [tuple(getattr(task.case, key, None) for key in SHAPE) for task in drawn]
    changes = sum(one != other for one, other in zip(shapes, shapes[1:], strict=False))
    assert changes + 1 == len(set(shapes)) < len(shapes) / 2
    assert rounds.in_random_order(tasks, "a host round-1") == drawn


def test_seeds_draw_shapes_and_systems_anew(case):
    variants, lengths = ("dense", "dense-eager", "dilated-sdpa"), (40, 80, 120)
    cases = [case(variant=variant, seq_len=n) for variant in variants for n in lengths]
    tasks = [grids.Task(one, (), "attention", grids.Limits()) for one in cases]
    firsts = [rounds.in_random_order(tasks, seed)[0].case for seed in range(90)]
    # Each of nine is the first in 10 draws of 90, give or take three.
    counts = Counter((one.variant, one.seq_len) for one in firsts)
    assert len(counts) == 9 and max(counts.values()) < 20


def aside_of(path):
    return path.parents[1] / "outdated" / path.parent.name


def test_records_of_other_code_stand_aside_and_come_back(put, case):
    one = case(variant="dense")
    path = put("round-1", one)
    text = path.read_text()
    rounds.set_aside_outdated(path, one)
    assert path.read_text() == text and not aside_of(path).exists()
    older = text.replace('"code_digest": "', '"code_digest": "0')
    path.write_text(older)
    rounds.set_aside_outdated(path, one)
    place = aside_of(path) / f"{one.name}@2026-11-28T110000Z.json"
    assert not path.exists() and place.read_text() == older
    # That of other code stays there; that of today's comes back.
    rounds.set_aside_outdated(path, one)
    assert not path.exists()
    place.write_text(text)
    rounds.set_aside_outdated(path, one)
    assert path.read_text() == text and list(aside_of(path).iterdir()) == []


def test_nothing_is_lost_when_records_stand_aside_again_and_again(put, case):
    one = case(variant="dense")
    path = put("round-1", one)
    text = path.read_text()
    damaged = [
        text.replace('"code_digest": "', '"code_digest": "0'),
        text.replace('"code_digest": "', '"code_digest": "1'),
        text.replace('"schema_version": 2', '"schema_version": 1'),
        text[:40],
        text[:50],
        "{}",
        "[]",
    ]
    for content in damaged:
        path.write_text(content)
        rounds.set_aside_outdated(path, one)
        assert not path.exists()
    found = [place.read_text() for place in aside_of(path).iterdir()]
    assert sorted(found) == sorted(damaged)
    names = sorted(place.name for place in aside_of(path).glob(f"{one.name}@2026-11-28T110000Z*"))
    assert names == [f"{one.name}@2026-11-28T110000Z{end}.json" for end in ("-2", "-3", "")]
    assert max(len(place.name) for place in aside_of(path).iterdir()) < 255


def test_only_records_of_the_case_itself_come_back(put, case):
    one, other = case(variant="dense"), case(variant="dense", seed=1)
    path = put("round-1", other)
    aside = aside_of(path)
    aside.mkdir(parents=True)
    place = aside / f"{other.name}@2026-11-28T110000Z.json"
    path.replace(place)
    target = path.with_name(f"{one.name}.json")
    rounds.set_aside_outdated(target, one)
    assert place.exists() and not target.exists()


@pytest.mark.parametrize(
    ("status", "variant", "is_done"),
    [
        *((status, "dense", True) for status in ("ok", "oom", "timeout", "unsupported")),
        ("failed", "dense", False),
        ("failed", "ring-attention-pytorch", True),
    ],
)
def test_a_failure_of_ours_is_measured_again_and_that_of_a_peer_stands(
    put, case, status, variant, is_done
):
    ranks = {"world_size": 2, "simulated": False} if variant != "dense" else {}
    one = case(variant=variant, **ranks)
    assert rounds.is_done(put("round-1", one, status), one) == is_done
    path = put("round-1", one, status, software={"code_digest": "of other code"})
    assert not rounds.is_done(path, one) and rounds.current(path, one) is None


HERE = replace(machine.describe("cpu"), device="a cpu")


@pytest.fixture
def first(tmp_path, put, case):
    """(first open round, put a record of this machine, the cases)."""
    cases = [case(variant="dense", seed=seed) for seed in range(3)]
    tasks = [grids.Task(one, ("dilated",), "attention", grids.Limits()) for one in cases]
    (tmp_path / "m").mkdir()
    (tmp_path / HERE.id).symlink_to(tmp_path / "m")

    def open_(tasks=tasks):
        return rounds.first_open(tmp_path, HERE, tasks)

    def add(round_, one, status="ok", host=HERE.host.id):
        return put(round_, one, status, machine={"host": host and {"id": host}})

    return open_, add, cases


def test_the_first_open_round_is_the_first_that_lacks_a_case(first):
    open_, add, cases = first
    assert open_() == 1 and open_([]) == 1
    statuses = ("ok", "oom", "timeout")
    paths = [add("round-1", *one) for one in zip(cases, statuses, strict=True)]
    assert open_() == 2
    add("round-2", cases[0])
    assert open_() == 2
    for one in cases:
        add("round-2", one)
        add("round-3", one)
    assert open_() == 4
    add("round-1", cases[1], "failed")
    assert open_() == 1
    paths[1].unlink()
    assert open_() == 1


def test_a_round_that_is_over_is_not_added_to(first, monkeypatch):
    open_, add, cases = first
    now = add("round-1", cases[0]).stat().st_mtime
    assert open_() == 1
    monkeypatch.setattr(rounds.time, "time", lambda: now + rounds.RESUME_S - 1)
    assert open_() == 1
    monkeypatch.setattr(rounds.time, "time", lambda: now + rounds.RESUME_S + 1)
    assert open_() == 2
    monkeypatch.undo()
    add("round-1", cases[1], host="another")
    assert open_() == 2
    add("round-2", cases[1], host=None)
    assert open_() == 3
