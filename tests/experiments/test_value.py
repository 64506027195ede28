"""The order of the cases of all experiments: complete, once each, most valuable first."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from experiments import grid
from experiments.campaign import value
from experiments.plain_yaml import loads


@pytest.mark.parametrize("tier", grid.TIERS)
def test_every_case_comes_exactly_once(tier):
    order = value.ordered(tier)
    assert Counter(one.task for one in order) == Counter(grid.tasks(tier))
    assert [one.rank for one in order] == list(range(len(order)))
    assert all(one.experiment in one.task.experiments for one in order)


def test_the_goals_come_first():
    first = value.ordered()[:6]
    assert [one.case.variant for one in first] == [
        *("dilated-triton", "dilated-gluon", "dilated-sdpa"),
        *("dense", "dilated-gather", "dilated-cudnn"),
    ]
    assert {one.case.seq_len for one in first} == {32768}
    assert all(one.case.is_causal and one.case.head_dim == 64 for one in first)
    early = value.ordered()[:60]
    sparse = {o.case.sparsity for o in early if o.case.variant == "block-sparse"}
    assert sparse == {0.9, 0.95, 0.98}
    assert any(o.case.seq_len == 2**30 and o.experiment == "extreme" for o in early)


def test_what_one_card_cannot_answer_comes_last():
    order = value.ordered()
    spread = [o.rank for o in order if o.case.is_spread and o.case.world_size > 1]
    packages = [o.rank for o in order if "flash-attn" in o.case.variant]
    assert min(spread + packages) > 0.8 * len(order)
    assert min(spread) > max(o.rank for o in order if o.why == value.REST)


def test_a_shared_case_is_that_of_the_first_entry_that_takes_it(tmp_path):
    both = {"block_sparse", "extreme"}
    shared = next(task.case for task in grid.tasks("gpu") if both <= {*task.experiments})
    fields = ", ".join(f"{key}: {getattr(shared, key)}" for key in ("variant", "seq_len"))
    path = tmp_path / "value.yaml"
    names = ("extreme", "block_sparse")
    entries = [f"  - {{why: {name}, experiment: {name}, {fields}}}" for name in names]
    path.write_text("\n".join(["tier: gpu", "first:", *entries, "last: []"]))
    (found,) = (one for one in value.ordered(path=path) if one.case == shared)
    assert (found.experiment, found.why) == ("extreme", "extreme")


def test_other_tiers_take_from_all_experiments_in_turn():
    order = value.ordered("smoke")
    # Of three turns: the first cases of one may be those of another too.
    turns = order[: 3 * len(grid.names())]
    assert {one.experiment for one in turns} == set(grid.names())
    assert all(one.why == value.REST for one in order)


def test_the_file_is_read_as_pyyaml_reads_it():
    text = value.PATH.read_text()
    assert loads(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{why: x, experiment: dilated, seq_len: [8192, 77]}", r"first, entry 1: seq_len=77: no"),
        ("{why: x, experiment: nowhere}", r"experiment='nowhere': expected one of as_published"),
        ("{why: x, experiment: dilated, length: 4}", "length: expected one of variant, batch"),
        ("{experiment: dilated}", "expected why, experiment and fields of cases"),
        (
            "{why: x, experiment: dilated, variant: dense, sparsity: 0.9}",
            "variant='dense': no case",
        ),
    ],
)
def test_bad_entries_are_told_in_a_line(tmp_path, entry, message):
    path = tmp_path / "value.yaml"
    path.write_text(f"tier: gpu\nfirst:\n  - {entry}\nlast: []\n")
    with pytest.raises(value.ValueFileError, match=message) as caught:
        value.ordered(path=path)
    assert "\n" not in str(caught.value)


def test_a_file_without_its_parts(tmp_path):
    path = tmp_path / "value.yaml"
    path.write_text("tier: gpu\n")
    with pytest.raises(value.ValueFileError, match="expected the keys tier, first and last"):
        value.ordered(path=path)
