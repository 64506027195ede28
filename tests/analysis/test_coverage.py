"""Which claims get a verdict by which minute, judged over records that do not exist yet."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.across import coverage
from analysis.across.expected_records import expected_record
from experiments import cost, grid
from experiments.campaign import value
from experiments.schema import Record


def _selected(*names):
    """(case, seconds) of the ordered cases of some experiments."""
    limits = {name: grid.load(name).tiers["gpu"].limits for name in grid.names()}
    found = {
        one.case: cost.seconds(one.case, limits[one.experiment], "cuda", replicates=1).total
        for one in value.ordered()
        if not names or one.experiment in names
    }
    return list(found.items())


def test_expected_records_are_valid_and_say_what_was_expected():
    for task in grid.tasks("gpu")[::7]:
        record = Record.model_validate(expected_record(task, 5.0))
        assert record.to_case() == task.case
        expected = cost.seconds(task.case, task.limits, "cuda")
        assert record.status == expected.status
        if record.status == "ok":
            samples = sorted(record.replicates[0].samples_ms)
            assert samples[len(samples) // 2] == pytest.approx(expected.pass_ms)
            assert record.replicates[0].peak_memory_bytes > 0


@pytest.fixture(scope="module")
def covered():
    return coverage.coverage(_selected(), (2, 10))


def test_every_claim_on_a_method_stands_in_the_table_once(covered, claims_file):
    wanted = [
        one.id
        for one in claims_file.claims.values()
        if one.sort == "claim" and "method" in one.predicate.judged_sides
    ]
    assert list(covered["claim"]) == wanted
    assert set(covered["decided"]) == {"before", 2, 10, "-"}


def test_a_claim_that_waits_for_a_case_is_decided_once_it_ends(covered):
    decided = covered.set_index("claim")["decided"]
    # A billion streamed tokens are measured after some two minutes; no CPU has them.
    assert decided["overview.scale.billion"] == 10
    assert decided["block_sparse.memory.block-sparse-95.n16384"] == 2


def test_what_is_not_decided_says_what_it_needs(covered):
    rows = covered.set_index("claim")
    assert (rows.loc[rows["decided"] != "-", "needs"] == "").all()
    assert (rows.loc[rows["decided"] == "-", "needs"] != "").all()
    time = rows.loc["comprehensive.time.dilated.b1.n2048", "needs"]
    assert time.startswith("GTX 1080: no record on a GTX 1080")
    ring = rows.loc["comprehensive.finding.float32-required.ring-multihead", "needs"]
    assert ring.startswith("a case: missing: multihead-ring-dilated at float16")


def test_counts_add_up(covered):
    counts = coverage.counts(covered)
    assert list(counts) == ["before", 2, 10, "-"]
    assert counts["before"] < counts[2] < counts[10]
    assert counts[10] + counts["-"] == len(covered)


def test_text_lists_what_is_new_and_what_is_missing(covered):
    text = coverage.text(covered, (2, 10))
    total = next(line for line in text.splitlines() if line.startswith("all "))
    numbers = [int(word) for word in total.split()[1:]]
    counts = coverage.counts(covered)
    assert numbers == [counts["before"], counts[2], counts[10], counts["-"]]
    assert "  10 min  overview.scale.billion" in text
    assert "comprehensive.setup.gpus" not in text


def test_counts_leave_out_no_minute():
    frame = pd.DataFrame({"decided": ["before", 5, 20, "-", "-"]})
    assert coverage.counts(frame) == {"before": 1, 5: 2, 20: 3, "-": 2}


@pytest.mark.parametrize("minutes", [(), (5, 5), (10, 5), (0, 5), (-1,)])
def test_minutes_that_do_not_rise(minutes):
    with pytest.raises(ValueError, match="expected rising numbers above 0"):
        coverage.coverage([], minutes)
