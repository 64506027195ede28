"""What is counted and not run: pairs that are left out, locality of an order of tokens."""

import pytest

from analysis import claims
from analysis.claims import REFUTED, REPRODUCED
from tests.analysis.claims_cases import data, entry, load


@pytest.mark.parametrize(
    ("system", "seq_len", "share", "verdict"),
    [
        ("base", 1024, 0, REPRODUCED),
        ("base", 1024, 1, REFUTED),
        ("half", 1024, 50, REPRODUCED),
        ("tenth", 1024, 90, REPRODUCED),  # 87.5: a block of 16 is 6.25
        ("tenth", 8192, 87.5, REFUTED),  # and one of 128 is 0.8
        ("tenth", 1024, 10, REFUTED),
    ],
)
def test_sparsity(judge, system, seq_len, share, verdict):
    found = judge({"kind": "sparsity", "system": system, "at": {"seq_len": seq_len}}, share)
    assert (found.verdict, found.basis) == (verdict, "construction")
    if system == "half":  # 8 of 16 blocks in each of 16 rows, 8 heads
        assert found.reason.startswith(f"{8 * 16 * 8 * 4096:,} of {8 * 1024**2:,} pairs")


@pytest.mark.parametrize(
    ("curve", "width", "verdict"),
    [("hilbert", None, REFUTED), ("hilbert", 64, REPRODUCED), ("snake", 64, REFUTED)],
)
def test_locality(judge, curve, width, verdict):
    order = {"kind": "locality", "curve": curve, "seq_len": 4096, "radius": 4, "block_size": 64}
    found = judge(order | {"width": width})
    assert (found.verdict, found.basis) == (verdict, "construction")
    if curve == "hilbert" and width == 64:  # squares of 8 x 8, fewer at the border
        assert f"meets {(22 / 8) ** 2:.3g} along the curve" in found.reason


def test_a_file_with_no_such_curve_is_refused(tmp_path):
    order = {"kind": "locality", "curve": "peano", "seq_len": 64, "radius": 4, "block_size": 8}
    with pytest.raises(claims.ClaimsError, match=r"w\.it: predicate\.curve"):
        load(tmp_path, data(entry(order)))
