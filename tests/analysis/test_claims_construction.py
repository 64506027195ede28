"""What is counted and not run: pairs that are left out, locality of an order of tokens."""

import pytest

from analysis import claims
from analysis.claims import FAILS, HOLDS, NOT_MEASURED
from tests.analysis.claims_cases import AT, data, entry, load, row


@pytest.mark.parametrize(
    ("system", "seq_len", "share", "verdict"),
    [
        ("base", 1024, 0, HOLDS),
        ("base", 1024, 1, FAILS),
        ("half", 1024, 50, HOLDS),
        ("tenth", 1024, 90, HOLDS),  # 87.5: a block of 16 is 6.25
        ("tenth", 8192, 87.5, FAILS),  # and one of 128 is 0.8
        ("tenth", 1024, 10, FAILS),
    ],
)
def test_sparsity(judge, system, seq_len, share, verdict):
    found = judge({"kind": "sparsity", "system": system, "at": {"seq_len": seq_len}}, share)
    assert (found.verdict, found.basis) == (verdict, "construction")
    if system == "half":  # 8 of 16 blocks in each of 16 rows, 8 heads
        assert found.reason.startswith(f"{8 * 16 * 8 * 4096:,} of {8 * 1024**2:,} pairs")


def test_as_published_what_the_replica_leaves_out_counts(judge):
    rows = [row("published-dense-ring") | {"realised_density": 0.906}]
    asked = {"kind": "sparsity", "system": "ring", "at": AT, "resolution": 1}
    found = judge(asked, 90, rows, side="as_published")
    assert (found.verdict, found.basis) == (FAILS, "records")
    assert found.measured["value"] == pytest.approx(9.4)
    assert judge(asked, 9, rows, side="as_published").verdict == HOLDS
    assert judge(asked, 0, rows).verdict == HOLDS  # the method is dense
    without = judge(asked | {"system": "half"}, 50, rows, side="as_published")
    assert (without.verdict, without.needs) == (NOT_MEASURED, "a replica")


@pytest.mark.parametrize(
    ("curve", "width", "verdict"),
    [("hilbert", None, FAILS), ("hilbert", 64, HOLDS), ("snake", 64, FAILS)],
)
def test_locality(judge, curve, width, verdict):
    order = {"kind": "locality", "curve": curve, "seq_len": 4096, "radius": 4, "block_size": 64}
    found = judge(order | {"width": width})
    assert (found.verdict, found.basis) == (verdict, "construction")
    published = judge(order | {"width": width}, side="as_published")
    assert (published.verdict, published.needs) == (NOT_MEASURED, "a replica")
    if curve == "hilbert" and width == 64:  # squares of 8 x 8, fewer at the border
        assert f"meets {(22 / 8) ** 2:.3g} along the curve" in found.reason


def test_a_file_with_no_such_curve_is_refused(tmp_path):
    order = {"kind": "locality", "curve": "peano", "seq_len": 64, "radius": 4, "block_size": 8}
    with pytest.raises(claims.ClaimsError, match=r"w\.it: predicate\.curve"):
        load(tmp_path, data(entry(order)))
