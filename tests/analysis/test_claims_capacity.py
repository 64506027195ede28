"""Predicates on amounts of memory, and on what fits a card."""

import pytest

from analysis import claims
from analysis.claims import CARD, FAILS, HOLDS, UNDECIDED
from tests.analysis.claims_cases import AT, MIB, WAITS, data, dense, entry, load, ring, row

MEMORY = {"kind": "memory_bytes", "system": "core", "at": AT, "resolution": 0.1}


def test_memory(judge):
    cuda = [row("dilated-gather", memory=10 * MIB, machine="cuda-new")]
    output = 2 * 1024 * 512 * 4 / MIB
    assert output == 4.0
    assert judge(MEMORY, 0).basis == "physics"
    assert judge(MEMORY, output - 0.1).verdict == FAILS
    assert judge(MEMORY, output).verdict == CARD
    assert judge(MEMORY, 12.0, cuda).verdict == HOLDS
    assert judge(MEMORY, 13.0, cuda).verdict == FAILS
    assert judge(MEMORY, 13.0, cuda).measured["value"] == 10.0
    found = judge(MEMORY, 10.0, [row("dilated-gather", memory=10 * MIB)])
    assert (found.verdict, found.needs) == (CARD, "any CUDA device")
    total = MEMORY | {"counts": "total"}
    assert judge(total, 4 * output - 0.1).verdict == FAILS
    assert judge(total, 22.0, cuda).verdict == HOLDS  # 10 and three inputs of 4
    assert judge(total, 22.0, cuda).measured["value"] == 22.0
    enough = total | {"enough": True}
    assert [judge(enough, figure, cuda).verdict for figure in (22.0, 64.0, 21.0)] == [
        *(HOLDS, HOLDS, FAILS)
    ]


def test_memory_per_token(judge):
    """Four tensors of 2 KiB per token are the least."""
    per_token = {"kind": "memory_bytes", "system": "ring", "at": AT, "counts": "total"}
    per_token |= {"per_token": True, "resolution": 0.1}
    below = judge(per_token, 7.9)
    assert (below.verdict, below.basis) == (FAILS, "physics")
    assert "8 KiB/token" in below.reason
    rows = [ring(memory=4 * 1024 * 2048, machine="cuda-new")]
    found = judge(per_token, 10.0, rows)
    assert (found.verdict, found.measured["unit"]) == (HOLDS, "KiB/token")
    assert found.measured["value"] == 10.0
    assert judge(per_token, 13.0, rows).verdict == FAILS


FITS = {"kind": "fits", "system": "base", "at": AT, "card": "old"}


def test_fits(judge):
    """The card has 64 MiB; a tensor has 4, so the inputs 12."""
    fits, exceeds = FITS | {"expect": "fits"}, FITS | {"expect": "exceeds"}
    small, large = [dense(memory=50 * MIB)], [dense(memory=53 * MIB)]
    assert judge(fits, None, small).verdict == HOLDS
    assert judge(exceeds, None, small).verdict == FAILS
    assert judge(fits, None, large).verdict == FAILS
    assert judge(exceeds, None, large).verdict == HOLDS
    assert judge(exceeds, None, large).measured["value"] == 65.0
    assert judge(fits).verdict in WAITS
    # A stand-in of batch 1 that fits decides nothing for batch 2; one that does not fit does.
    assert judge(fits, None, [dense(memory=50 * MIB, batch=1)]).verdict == UNDECIDED
    assert judge(fits, None, [dense(memory=63 * MIB, batch=1)]).verdict == FAILS
    # Four tensors of 20 MiB.
    long = {"at": {"batch": 2, "seq_len": 5120}}
    assert judge(exceeds | long).basis == "physics"
    assert (judge(exceeds | long).verdict, judge(fits | long).verdict) == (HOLDS, FAILS)
    out_of_memory = [dense(status="oom")]
    assert judge(exceeds, None, out_of_memory).verdict == HOLDS
    assert judge(fits, None, out_of_memory).verdict == FAILS
    out_of_memory[0]["device_memory_bytes"] = 32 * MIB
    assert judge(exceeds, None, out_of_memory).verdict in WAITS


def test_scores_that_are_written_down_fill_a_card_whatever_was_measured(judge):
    """Two of 2 x 8 x 1024^2 numbers of 32 bits are 128 MiB, of a card of 64."""
    fits = FITS | {"expect": "exceeds", "system": "written"}
    found = judge(fits)
    assert (found.verdict, found.basis) == (HOLDS, "physics")
    assert found.reason == "scores, q, k, v and the output are 144 MiB"
    # Of the rings only the published code writes them down.
    rings = fits | {"system": "ring"}
    assert judge(rings, side="as_published").verdict == HOLDS
    assert judge(rings, None, [ring(memory=8 * MIB)]).verdict == FAILS


def test_fits_a_published_amount(judge, tmp_path):
    """A tensor has 4 MiB here, so the inputs 12."""
    fits = {"kind": "fits", "system": "ring", "at": AT, "expect": "exceeds"}
    assert judge(fits, 64, [ring(memory=50 * MIB)]).verdict == FAILS
    assert judge(fits, 60, [ring(memory=50 * MIB)]).verdict == HOLDS
    assert (judge(fits, 15).verdict, judge(fits, 15).basis) == (HOLDS, "physics")
    with pytest.raises(claims.ClaimsError, match=r"predicate\.card: missing"):
        load(tmp_path, data(entry(fits)))
