"""The oracle's rows in pieces are those of the whole, and pieces are small."""

from dataclasses import replace

import pytest
import torch

from experiments import check, chunked_oracle
from experiments.workload import build

KINDS = ["dilated-sdpa", "head-partitioned", "block-sparse-sdpa", "dense", "multihead-dilated-sdpa"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize("variant", KINDS)
def test_pieces_make_the_whole(case, monkeypatch, variant, passes, dense, dtype):
    work = build(case(variant=variant, pass_=passes, batch=3), "cpu")
    rows = check.sample_rows(40, 0)[::3]
    out, grads = work.recompute(rows, dtype, dense=dense)
    monkeypatch.setattr(chunked_oracle, "PIECE_BYTES", 1)
    parts = chunked_oracle.pieces(work.case, len(rows), dtype, splits_heads=work.module is None)
    assert len(parts) == (3 if work.module else 6)
    found, found_grads = chunked_oracle.recompute(work, rows, dtype, dense=dense)
    torch.testing.assert_close(found, out)
    assert len(found_grads) == len(grads)
    for got, expected in zip(found_grads, grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_heads_of_other_offsets_are_told_apart(case, monkeypatch):
    """Each head of a dilated pattern keeps its own keys: a piece that took those of the first
    would differ."""
    work = build(case(variant="dilated-sdpa", kv_heads=4), "cpu")
    counts = [work.pattern.counts(head, 4, torch.arange(40), 40) for head in range(4)]
    assert not torch.equal(counts[0], counts[1])


def of_size(case, **changes):
    return case(variant="dense", dtype="float16", pass_="forward_backward", **changes)


def test_small_cases_are_whole_and_pieces_of_large_ones_are_small(case):
    small = of_size(case, batch=4, seq_len=4096, heads=12, kv_heads=12, head_dim=64)
    whole = [(slice(0, 4), slice(0, 12))]
    assert chunked_oracle.pieces(small, 64, torch.float64, splits_heads=True) == whole
    batched = of_size(case, batch=4, seq_len=32768, heads=12, kv_heads=12, head_dim=64)
    found = chunked_oracle.pieces(batched, 32, torch.float64, splits_heads=True)
    assert found == [(slice(0, 2), slice(0, 12)), (slice(2, 4), slice(0, 12))]
    long = of_size(case, batch=1, seq_len=2**20, heads=8, kv_heads=8, head_dim=64)
    found = chunked_oracle.pieces(long, 16, torch.float64, splits_heads=True)
    assert found == [(slice(0, 1), slice(head, head + 1)) for head in range(8)]
    assert chunked_oracle.pieces(long, 16, torch.float64, splits_heads=False) == [
        (slice(0, 1), slice(0, 8))
    ]
    many = replace(long, batch=512, seq_len=8192, heads=4, kv_heads=4, head_dim=8, pass_="forward")
    found = chunked_oracle.pieces(many, 64, torch.float64, splits_heads=True)
    assert sum(x.stop - x.start for x, _ in found) == 512 and len(found) > 1
    for x, heads in found:
        stored = (x.stop - x.start) * 8192 * 8 * (8 * 12 + 5 * 64)
        assert stored <= 4 * 2**30 and heads == slice(0, 4)


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "float32"), ("float32", "float64")])
def test_gradients_are_stored_far_finer_than_the_case(case, tmp_path, dtype, stored):
    work = build(case(dtype=dtype, pass_="forward_backward"), "cpu")
    check.write_reference(work, tmp_path / "reference.pt")
    found = torch.load(tmp_path / "reference.pt")
    assert {x.dtype for x in found["grads"]} == {getattr(torch, stored)}
    assert found["out"].dtype == torch.float64
    _, exact = work.recompute(found["rows"], torch.float64, dense=False)
    for got, expected in zip(found["grads"], exact, strict=True):
        assert check.relative_rms(got, expected) < (5e-8 if dtype == "float16" else 1e-30)
