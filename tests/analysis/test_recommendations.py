"""The write-ups' advice beside that of the records: every row is from a claim."""

import pytest

from analysis.advise import recommendations
from analysis.advise.recommendations import COLUMNS, advice_table
from analysis.selection import published, views
from tests.analysis import synthetic


@pytest.fixture(scope="module")
def table(once, laptop):
    return once("advice-laptop", advice_table, laptop)


@pytest.fixture(scope="module")
def table_of_gpu(once, both):
    return once("advice-both", advice_table, both, synthetic.GPU)


def rows(table):
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table.rows}


def short(claim):
    return claim.replace(".recommend.", ": ")


def test_every_recommendation_about_speed_or_memory_on_one_device_has_a_row(
    laptop, claims_file, table
):
    found, answered = rows(table), 0
    for name in set(claims_file.writeups) & set(published.EXPERIMENTS):
        view = views.view(laptop, name)
        asked = recommendations.recommendations(claims_file, view)
        for one in asked:
            assert (short(one.claim) in found) != (one.claim in table.note)
            answered += short(one.claim) in found
    assert answered == len(found) > 10
    assert not any("multi-gpu" in key for key in found)


def test_advice_follows_the_records(table):
    found = rows(table)
    short = found["comprehensive: short.b1"]
    # 9 ms at 1024 tokens against 30.
    assert (short["advised"], short["best of its kind"]) == ("ImprovedDilated", "itself")
    assert short["borne out"] == "yes"
    assert short["best dense ms"].value > short["its ms"].value == short["best ms"].value
    # At batch 4, blocks at 98 % were measured as well.
    fewer = found["comprehensive: short.b4"]
    assert (fewer["best of all"], fewer["borne out"]) == ("Block-sparse 98 %", "yes")
    assert fewer["best dense ms"].value > fewer["its ms"].value > fewer["best ms"].value
    slow = found["dilated: speed.n2048"]
    assert slow["borne out"] == "no" and slow["its ms"].value > slow["that ms"].value
    sparse = found["block_sparse: long.n16384"]
    assert sparse["borne out"] == "yes" and sparse["best dense ms"].value > sparse["its ms"].value
    ring = found["comprehensive: long.b1.n4096"]
    assert ring["advised"] == "Ring, dilated"
    assert ring["its ms"].value == pytest.approx(0.3 + 9 * 4**1.55, rel=1e-3)


def test_rings_on_a_cpu_are_compared_with_rings(table, table_of_gpu):
    row = rows(table)["ring: medium.ring-standard.n2048"]
    # Contiguous and zigzag rings of one rank take the same time.
    assert row["best of all"] == "Ring, sparse 90 %" and row["borne out"] == "not told apart"
    assert "ring.recommend.memory" in table.note
    assert "ring: memory" in rows(table_of_gpu)


def test_only_x_will_do_is_tried_on_what_it_excludes(table_of_gpu):
    found = rows(table_of_gpu)
    row = found["comprehensive: very-long.improved"]
    assert row["advised"] == "not ImprovedDilated"
    assert row["borne out"] == "no, it runs" and row["at"] == "16K, b1"


def test_without_times_nothing_is_borne_out(nothing):
    table = advice_table(nothing)
    assert table.rows == [] and "block_sparse.recommend.long.n4096" in table.note


def test_trial_runs_alone_give_a_table_too(smoke):
    table = advice_table(smoke)
    assert table.rows == [] and "Nothing was measured at the shape of" in table.note
