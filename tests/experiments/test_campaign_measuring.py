"""The measuring of a campaign: what the end of its time cuts off leaves no record."""

import time
from dataclasses import replace

import pytest

from experiments import machine, record, runner
from experiments.campaign import measuring
from experiments.campaign.folder import Folder
from experiments.campaign.measuring import Measuring
from experiments.campaign.work import rehearsal
from experiments.procedures import attention
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
        yield Measuring(folder, HERE, "smoke", workers, [], lambda: None)


def hang(*_):
    time.sleep(60)


def measured(of_campaign, one, seconds):
    of_campaign.run([one], rounds=1, end=time.monotonic() + seconds)
    return list(of_campaign.folder.records.rglob("*.json"))


def test_a_case_with_time_enough_has_a_record(of_campaign, chosen):
    (path,) = measured(of_campaign, chosen, 60)
    assert path == of_campaign.path(chosen)
    assert record.read(path)["status"] == "ok" and of_campaign.given_up == {}


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
    found = runner.current(path, chosen.case)
    assert (found["status"], found["reason"]) == ("timeout", "over its limit of 1.5 s")
