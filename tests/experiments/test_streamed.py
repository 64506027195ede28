"""A streamed case: checked against each row's own keys, timed without its source."""

import json

import pytest
import torch

from experiments import check
from experiments.case import Case
from experiments.procedures import streamed
from experiments.sampled_reference import sampled_reference
from models.oracle import attend_rows
from models.patterns.branches import DilatedBranches
from models.sources import GeneratedSource, HostSource

pytestmark = pytest.mark.usefixtures("one_core")

LIMITS = {"min_samples": 2, "max_samples": 2, "sample_seconds": 0.0}


def case(variant="dilated-streamed", **changes):
    fields = {
        **{"variant": variant, "batch": 2, "seq_len": 300, "heads": 4, "kv_heads": 2},
        **{"head_dim": 8, "dtype": "float32", "is_causal": True, "pass_": "forward"},
        **{"segment_lengths": (32, 64, 300), "dilation_rates": (1, 2, 7), "seed": 3},
    }
    return Case(**{**fields, **changes})


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("branches", [((32, 64), (1, 2)), ((32, 300), (3, 7)), ((10**6,), (1,))])
def test_attention_to_a_rows_own_keys_is_the_oracle(is_causal, branches):
    source = GeneratedSource(300, batch=2, heads=4, kv_heads=2, head_dim=8, dtype=torch.float64)
    q, k, v = (x.clone() for x in source.read(0, 300))
    pattern, rows = DilatedBranches(*branches), torch.tensor([0, 5, 77, 299])
    exact, plain = sampled_reference(source, pattern, rows, is_causal=is_causal)
    expected, _ = attend_rows(q[:, rows], k, v, rows, pattern=pattern, is_causal=is_causal)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("variant", ["", "-mapped", "-host"])
def test_a_replicate_is_checked_timed_and_weighed(variant, tmp_path):
    one, reference = case(f"dilated-streamed{variant}"), tmp_path / "reference.pt"
    known = streamed.make_reference(one, "cpu", reference)
    pattern = DilatedBranches(one.segment_lengths, one.dilation_rates)
    pairs = pattern.pairs(300, 4, True)
    assert known["backend"] == "streamed, sdpa (cpu-flash)"
    assert known["useful_flops"] == 4 * 8 * 2 * pairs
    assert known["realised_density"] == pairs / (4 * 300 * 301 / 2)
    found = streamed.replicate(one, "cpu", reference, LIMITS)
    assert len(found["samples_ms"]) == len(found["source_ms"]) == 2
    assert min(found["samples_ms"]) > 0 and min(found["source_ms"]) > 0
    assert found["peak_memory_bytes"] >= 0
    error = found["error"]
    assert error["rows_checked"] == len(check.sample_rows(300, 3)) == 56
    assert error["reference"] == streamed.REFERENCE
    assert error["output"]["relative_rms"] <= 2 * error["output"]["baseline_relative_rms"] < 1e-5


def test_all_sources_give_the_same_tokens(tmp_path):
    q, k, v = GeneratedSource(300, batch=2, heads=4, kv_heads=2, head_dim=8, seed=3).read(0, 300)
    for kind in ("", "-mapped", "-host"):
        one = case(f"dilated-streamed{kind}")
        streamed.make_reference(one, "cpu", tmp_path / "reference.pt")
        source = streamed._opener(one, "cpu", tmp_path)()
        for got, x in zip(source.read(64, 131), (q, k, v), strict=True):
            assert torch.equal(got, x[:, 64:131])


def test_a_wrong_row_fails_the_case(tmp_path, monkeypatch):
    one, reference = case(), tmp_path / "reference.pt"
    streamed.make_reference(one, "cpu", reference)

    def wrong(case, source, sink):
        exact(case, source, lambda start, out, lse: sink(start, out * 1.001, lse))

    exact = streamed._run
    monkeypatch.setattr(streamed, "_run", wrong)
    with pytest.raises(check.CheckFailed, match="output: relative error"):
        streamed.replicate(one, "cpu", reference, LIMITS)


def test_the_time_in_the_source_is_not_in_the_samples(monkeypatch):
    clock = map(float, range(100))
    monkeypatch.setattr(streamed.time, "perf_counter", lambda: next(clock))
    q, k, v = (torch.randn(1, 96, 4, 8) for _ in range(3))
    one = case(batch=1, kv_heads=4, seq_len=96, segment_lengths=(32,), dilation_rates=(1,))
    rows = streamed._KeptRows(torch.tensor([0, 40, 95]))
    # Marks at the start, around each of three reads, and at the end: 7 s, 3 of them reading.
    assert streamed._timed(one, HostSource(q, k, v), rows) == (4000, 3000)
    assert rows.rows().shape == (1, 3, 4, 8)


def test_rows_are_sampled_at_any_length():
    rows = check.sample_rows(2**30, 0)
    assert len(rows) == 16 and rows[0] == 0 and rows[-1] == 2**30 - 1
    assert check.sample_rows(10, 0).tolist() == list(range(10))
    assert json.dumps(rows.tolist()) == json.dumps(check.sample_rows(2**30, 0).tolist())
