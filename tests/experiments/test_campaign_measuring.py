"""The measuring of a campaign: by rounds, and what the end of its time cuts off has no record."""

import itertools
import os
import time
from dataclasses import replace

import pytest

from experiments import machine, record, rounds, runner
from experiments.campaign import measuring
from experiments.campaign.folder import Folder
from experiments.campaign.measuring import Measuring
from experiments.campaign.work import rehearsal
from experiments.procedures import attention
from experiments.references import References
from experiments.workers import Workers

HERE = machine.describe("cpu")


@pytest.fixture
def chosen():
    """A case of the smoke tier."""
    return next(one for one in rehearsal().first if one.case.variant == "dense")


@pytest.fixture
def of_campaign(tmp_path):
    folder = Folder.begin(tmp_path / "campaign", {"format": 1})
    with Workers.of("cpu") as workers:
        yield Measuring(folder, HERE, "smoke", workers, [], lambda: None, References())


def hang(*_):
    time.sleep(60)


def measured(of_campaign, one, seconds, most=1):
    of_campaign.run([one], most=most, end=time.monotonic() + seconds)
    return rounds.record_files(of_campaign.folder.records)


def test_a_case_with_time_enough_has_a_record(of_campaign, chosen):
    (path,) = measured(of_campaign, chosen, 60)
    assert path == of_campaign.path(chosen, 1)
    assert path.parts[-3:] == (HERE.id, "round-1", f"{chosen.case.name}.json")
    assert record.read(path)["status"] == "ok" and of_campaign.given_up == {}


def test_each_round_is_a_fresh_process_and_a_record(of_campaign, chosen, monkeypatch):
    real = attention.replicate

    def pids(*arguments):
        return {**real(*arguments), "samples_ms": [float(os.getpid())]}

    monkeypatch.setattr(attention, "replicate", pids)
    paths = measured(of_campaign, chosen, 60, most=2)
    assert [path.parent.name for path in paths] == ["round-1", "round-2"]
    found = [record.read(path) for path in paths]
    assert [len(one["replicates"]) for one in found] == [1, 1]
    pids = {sample for one in found for sample in one["replicates"][0]["samples_ms"]}
    assert len(pids) == 2 and os.getpid() not in pids
    # No gauge beside tiny shapes, and nothing is measured again.
    assert [one["gauges"] for one in found] == [None, None]
    times = [path.stat().st_mtime_ns for path in paths]
    assert measured(of_campaign, chosen, 60, most=2) == paths
    assert [path.stat().st_mtime_ns for path in paths] == times


def test_what_failed_in_the_first_round_has_no_second(of_campaign, chosen, monkeypatch):
    def fail(*_):
        raise MemoryError("can't allocate memory")

    monkeypatch.setattr(attention, "replicate", fail)
    (path,) = measured(of_campaign, chosen, 60, most=3)
    assert path.parent.name == "round-1" and record.read(path)["status"] == "oom"
    assert [of_campaign._wants(chosen, number) for number in (1, 2, 3)] == [False] * 3


def test_a_record_by_other_tiles_stands_aside(of_campaign, chosen):
    (path,) = measured(of_campaign, chosen, 60)
    older = path.read_text().replace('"code_digest": "', '"code_digest": "0')
    path.write_text(older)
    assert measured(of_campaign, chosen, 60) == [path]
    assert path.read_text() != older
    (aside,) = (path.parents[1] / "outdated" / "round-1").iterdir()
    assert aside.read_text() == older


def test_gauges_are_taken_between_cases(of_campaign, chosen, monkeypatch):
    series = [{"dense_ms": float(n), "matmul_ms": 1.0, "copy_ms": 1.0} for n in range(1, 4)]
    taken = iter(series)
    monkeypatch.setattr(runner, "read_gauge", lambda *_: next(taken))
    paths = measured(of_campaign, chosen, 60, most=2)
    assert [record.read(path)["gauges"] for path in paths] == [
        {"before": before, "after": after} for before, after in itertools.pairwise(series)
    ]


@pytest.mark.parametrize("stage", ["make_reference", "replicate"])
def test_the_end_of_the_step_is_no_result(of_campaign, chosen, stage, monkeypatch, capfd):
    monkeypatch.setattr(attention, stage, hang)
    seconds = of_campaign.expected(chosen) + 0.5
    assert measured(of_campaign, chosen, seconds) == []
    assert "cut off after" in capfd.readouterr().err
    # A later run has it to measure.
    assert of_campaign.given_up == {} and of_campaign._wants(chosen, 1)


@pytest.mark.parametrize("stage", ["make_reference", "replicate"])
def test_one_that_takes_far_longer_than_expected_is_left(
    of_campaign, chosen, stage, monkeypatch, capfd
):
    monkeypatch.setattr(attention, stage, hang)
    monkeypatch.setattr(measuring, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(measuring, "_PATIENCE", 0.1)
    assert measured(of_campaign, chosen, 60) == []
    assert "given up after 1 s" in capfd.readouterr().err
    assert len(of_campaign.given_up) == 1 and not of_campaign._wants(chosen, 1)


def test_over_the_limit_of_its_tier_is_a_result(of_campaign, chosen, monkeypatch):
    monkeypatch.setattr(attention, "replicate", hang)
    real = of_campaign._limits
    monkeypatch.setattr(of_campaign, "_limits", lambda one: replace(real(one), timeout_s=1.5))
    (path,) = measured(of_campaign, chosen, 60)
    found = rounds.current(path, chosen.case)
    assert found["status"] == "timeout" and found["reason"].startswith("over its limit of 1.5 s")
