"""Memory per rank as a sequence is spread over more ranks."""

import pytest

from analysis.claims import FAILS, HOLDS, UNDECIDED
from tests.analysis.claims_cases import MIB, WAITS, ring

RANKS = {
    "kind": "rank_memory",
    "system": "ring",
    "at": {"batch": 1},
    "lengths": [8192, 4096],
    "world_sizes": [2, 4, 8, 16],
}


def spread(power, fixed=0.0, simulated=True, seq_len=4096, ranks=(2, 4, 8, 16)):
    """A rank's memory beyond its inputs, so that with them it grows as (n / P)^power."""
    tensor = seq_len * 512 * 4
    for p in ranks:
        whole = 8 * tensor * (1 / p) ** power + fixed
        case = {"batch": 1, "seq_len": seq_len, "world_size": float(p), "simulated": simulated}
        yield ring(memory=whole - 3 * tensor / p, **case)


@pytest.mark.parametrize(
    ("power", "verdict"),
    [(1.0, HOLDS), (0.8, HOLDS), (0.7, UNDECIDED), (0.4, FAILS)],
)
def test_memory_per_rank_is_its_share(judge, power, verdict):
    found = judge(RANKS, None, spread(power))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(power)
    assert f"16 virtual ranks at 4096 tokens, as (n/P)^{power:.2f}" in found.reason


def test_a_cost_that_stays_on_every_rank_counts_against_it(judge):
    assert judge(RANKS, None, spread(1.0, fixed=64 * MIB)).verdict == FAILS
    assert judge(RANKS, None, spread(1.0, ranks=(2, 4))).verdict in WAITS
    # Real ranks are used before virtual ones, and the first length that has enough of them.
    rows = [*spread(1.0), *spread(0.4, simulated=False)]
    assert judge(RANKS, None, rows).verdict == FAILS
    found = judge(RANKS, None, [*rows, *spread(1.0, seq_len=8192)])
    assert found.verdict == HOLDS
    assert "8192 tokens" in found.reason
    assert judge(RANKS).verdict in WAITS
    assert "needed: three of 2, 4, 8, 16 ranks, at one of 8192, 4096 tokens" in judge(RANKS).reason
