"""The drift gauge: what is off, and what is measured again for it."""

import itertools
import math

import pytest

from experiments import gauge, machine, record, runner, supervise
from experiments.grid import Limits, Task
from experiments.schema import Gauges

LIMITS = Limits(min_samples=2, max_samples=3, sample_seconds=0.01, timeout_s=60)


def of(dense=1.0, matmul=1.0, copy=1.0):
    return {"dense_ms": dense, "matmul_ms": matmul, "copy_ms": copy}


def beside(before, after, **fields):
    return {"gauges": {"before": before, "after": after}, **fields}


def test_the_gauge_is_three_times_in_ms(monkeypatch, one_core):
    monkeypatch.setitem(gauge._TOKENS, "cpu", 64)
    seconds = iter([3e-3, 1e-3, 2e-3])
    monkeypatch.setattr(gauge.ceilings, "best_seconds", lambda run, device: next(seconds))
    # The product, the copy, and then attention: as `rates_in_seconds` is called first.
    assert gauge.read("cpu") == pytest.approx(of(dense=2.0, matmul=3.0, copy=1.0))


@pytest.mark.parametrize("key", ["dense", "matmul"])
def test_a_gauge_is_off_beyond_the_bound_either_way(key):
    assert gauge.BOUND == 1.25
    for factor, is_off in ((1.24, False), (1.26, True), (1 / 1.24, False), (1 / 1.26, True)):
        assert gauge.is_off(of(**{key: factor}), of()) == is_off
    assert not gauge.is_off(of(copy=3.0), of())


def test_the_usual_is_the_median_of_a_rounds_gauges():
    usual = gauge.medians([of(dense=ms, copy=2.0) for ms in (1, 2, 3, 4, 100, 3)])
    assert usual == {"dense_ms": 3.0, "matmul_ms": 1.0, "copy_ms": 2.0}
    assert gauge.medians([of()] * 5) is None


def test_what_is_disturbed_is_told_by_gauges_and_not_by_results():
    records = {f"quiet-{n}": beside(of(), of(), ms=10.0 * n) for n in range(1, 4)}
    records["before"] = beside(of(dense=1.3), of(), ms=10.0)
    records["after"] = beside(of(), of(dense=1.3), ms=10.0)
    records["without"] = {"gauges": None, "ms": 1e9}
    assert gauge.disturbed(records) == {"before", "after"}
    changed = {name: {**one, "ms": 1e6} for name, one in records.items()}
    assert gauge.disturbed(changed) == {"before", "after"}
    # What a training learns is not a matter of speed.
    trained = records | {"after": {**records["after"], "case": {"recipe": "text"}}}
    assert gauge.disturbed(trained) == {"before"}
    # With too few gauges nothing is usual.
    assert gauge.disturbed({name: records[name] for name in ("quiet-1", "after")}) == set()


@pytest.fixture
def tasks(case):
    """Six cases of one shape."""
    cases = [case(variant="dense", seed=seed) for seed in range(6)]
    return [Task(one, ("dilated",), "attention", LIMITS) for one in cases]


@pytest.fixture
def go(tmp_path, monkeypatch, tasks, no_lock):
    """Run a round of them, unmeasured, with gauges as scripted; returns the order of cases.

    script: a function of how many gauges there were and of the names of the cases so far.
    """

    def run(script, tier="laptop", **options):
        measured, count = [], itertools.count()

        def not_measured(tier, case, limits, machine, digest, **_):
            measured.append(case.name)
            return supervise.not_measured(tier, case, machine, digest, "not in this test")

        def read_gauge(*_):
            return script(next(count), measured)

        monkeypatch.setattr(supervise, "supervise", not_measured)
        monkeypatch.setattr(runner, "read_gauge", read_gauge)
        runner.run(tasks, tier, device="cpu", out=tmp_path, round_="round-1", **options)
        return measured

    return run


def gauges_of(tmp_path):
    folder = tmp_path / machine.describe("cpu").id / "round-1"
    return {path.stem: record.read(path)["gauges"] for path in folder.glob("*.json")}


def test_neighbours_share_the_gauge_between_them(go, tmp_path):
    order = go(lambda count, _: of(dense=1 + count / 100))
    found = gauges_of(tmp_path)
    assert len(order) == len(found) == 6
    for number, name in enumerate(order):
        before, after = (of(dense=1 + n / 100) for n in (number, number + 1))
        assert found[name] == {"before": before, "after": after}


def test_the_cases_beside_a_gauge_that_is_off_are_measured_again(go, tmp_path):
    # The third is read after the third case and before the fourth.
    order = go(lambda count, _: of(matmul=1.3 if count == 3 else 1.0))
    assert len(set(order[:6])) == 6 and order[6:] == order[2:4]
    assert all(found == {"before": of(), "after": of()} for found in gauges_of(tmp_path).values())


def test_they_are_measured_again_twice_at_most(go, tmp_path):
    def script(_, measured):
        return of(dense=1.3 if measured and measured[-1] == measured[4] else 1.0)

    order = go(lambda count, measured: script(count, measured) if len(measured) > 4 else of())
    assert order[6:] == order[4:6] * 2
    off = {name for name, found in gauges_of(tmp_path).items() if of(dense=1.3) in found.values()}
    assert off == set(order[4:6])


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (lambda count, _: of(), {}),
        # Within a budget nothing is measured again, and where there is no gauge neither.
        (lambda count, _: of(matmul=1.3 if count == 3 else 1.0), {"budget_s": 1e9}),
        (lambda count, _: None, {}),
        (lambda count, _: of(matmul=1.3 if count == 3 else 1.0), {"tier": "smoke"}),
    ],
)
def test_a_quiet_round_measures_each_case_once(go, script, options):
    order = go(script, **options)
    assert len(order) == len(set(order)) == 6


def test_within_a_budget_the_given_order_is_kept(go, tasks):
    assert go(lambda *_: of(), budget_s=1e9) == [task.name for task in tasks]


def test_a_round_on_this_cpu_has_gauges_and_a_smoke_test_none(
    tmp_path, monkeypatch, tasks, no_lock
):
    monkeypatch.setitem(gauge._TOKENS, "cpu", 64)
    for tier in ("laptop", "smoke"):
        paths = runner.run(tasks[:2], tier, device="cpu", out=tmp_path / tier)
        found = [record.read(path) for path in paths]
        assert [one["status"] for one in found] == ["ok", "ok"]
        if tier == "smoke":
            assert [one["gauges"] for one in found] == [None, None]
            continue
        both = [Gauges.model_validate(one["gauges"]) for one in found]
        assert both[0].after == both[1].before or both[1].after == both[0].before
        times = [getattr(one.before, key) for one in both for key in of()]
        assert all(0 < ms < 1000 and math.isfinite(ms) for ms in times)


def test_a_gauge_that_cannot_be_read_leaves_the_record_without(
    tmp_path, monkeypatch, tasks, no_lock
):
    def fail(_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(gauge, "read", fail)
    (path,) = runner.run(tasks[:1], "laptop", device="cpu", out=tmp_path)
    assert record.read(path)["gauges"] is None and record.read(path)["status"] == "ok"
