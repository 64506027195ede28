"""What is counted: FLOPs, density, peak memory; and that the check sees what it should."""

import subprocess
import sys
import time

import pytest
import torch

from experiments import ceilings, check, children, measure
from experiments.case import PATTERNS
from experiments.workload import build


@pytest.fixture(autouse=True)
def small_ceilings():
    """Here they are measured at the sizes that a record's are."""


@pytest.fixture
def work(case):
    """Build the workload of a small case on the CPU; keyword arguments replace fields."""
    return lambda **changes: build(case(**changes), "cpu")


def test_dense_flops_are_the_textbook_number(work):
    dense = {"variant": "dense", "batch": 2, "seq_len": 128, "heads": 4, "head_dim": 16}
    full = work(**dense, is_causal=False)
    assert full.useful_flops() == 4 * 16 * 2 * 4 * 128 * 128
    causal = work(**dense, is_causal=True)
    assert causal.useful_flops() == 4 * 16 * 2 * 4 * 128 * 129 // 2
    both = work(**dense, is_causal=False, pass_="forward_backward")
    assert both.useful_flops() == 3.5 * full.useful_flops()
    assert full.density() == causal.density() == 1.0


def test_dilated_flops_are_those_of_longnet_equation_17(work):
    shape = {"seq_len": 8192, "heads": 8, "kv_heads": 8, "head_dim": 64, "batch": 1}
    point = work(
        **shape,
        is_causal=False,
        segment_lengths=(2048, 4096, 8192),
        dilation_rates=(1, 2, 4),
    )
    pairs_per_query = 2048 / 1 + 4096 / 4 + 8192 / 16
    assert point.useful_flops() == 4 * 64 * 8 * 8192 * pairs_per_query
    assert point.density() == pairs_per_query / 8192


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_block_sparse_flops_are_those_of_the_tokens_kept(work, pattern, is_causal):
    # 104 = 6.5 blocks of 16: the last is cut short, the diagonal ones by causality.
    shape = {"batch": 2, "seq_len": 104, "heads": 4, "head_dim": 8, "is_causal": is_causal}
    point = work(variant="block-sparse", pattern=pattern, sparsity=0.5, **shape)
    blocks = point.pattern.to_dense()
    tokens = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :104, :104]
    allowed = torch.ones(104, 104).tril() if is_causal else torch.ones(104, 104)
    kept = (tokens * allowed).expand(4, -1, -1).sum().item()
    assert point.useful_flops() == 4 * 8 * 2 * kept
    assert point.density() == kept / (4 * allowed.sum().item())
    within_one_block_per_row = blocks.sum(2) - 0.5 * (torch.arange(7) + 1 if is_causal else 7)
    assert within_one_block_per_row.abs().max() <= 1
    assert 0.3 < point.density() < 0.75


def test_a_block_mask_is_what_the_oracle_is_given(work):
    point = work(variant="block-sparse", pattern="local_window", sparsity=0.6, is_causal=False)
    rows = torch.tensor([0, 20, 39])
    counts = point.pattern.counts(0, 4, rows, 40)
    # 3 blocks of 16 (the last of 8), 1 kept a row: the row's own.
    expected = torch.zeros(3, 40, dtype=torch.int64)
    expected[0, :16] = expected[1, 16:32] = expected[2, 32:] = 1
    assert torch.equal(counts, expected)
    out, _ = point.recompute(rows, torch.float64, dense=False)
    assert (point.step()[:, rows] - out).abs().max() < 1e-6
    dense, _ = point.recompute(rows, torch.float64, dense=True)
    assert (dense - out).abs().max() > 0.1


def test_masks_follow_the_seed_of_the_case(work):
    many = {"variant": "block-sparse", "seq_len": 512, "pattern": "random", "sparsity": 0.8}
    a, b, c = (work(**many, seed=s).pattern.col_idx for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    many["pattern"] = "top_k"
    a, b, c = (work(**many, seed=s).pattern.col_idx for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("pattern", ["random", "top_k"])
def test_no_gradient_goes_through_the_choice_of_blocks(work, pattern):
    point = work(variant="block-sparse", pattern=pattern, pass_="forward_backward")
    rows = torch.tensor([0, 20, 39])
    _, reference = point.recompute(rows, torch.float64, dense=False)
    for got, expected in zip(point.limited_to(rows).gradients(), reference, strict=True):
        assert (got - expected).abs().max() < 2e-6


def test_ceilings_count_flops_and_bytes_both_ways(monkeypatch, one_core):
    def a_millisecond(run, device):
        run()
        return 1e-3

    monkeypatch.setattr(ceilings, "best_seconds", a_millisecond)
    found = ceilings.measure("float32", "cpu")
    assert found == {"matmul_flops_per_s": 2 * 512**3 / 1e-3, "copy_bytes_per_s": 2 * 2**26 / 1e-3}


def test_a_module_counts_its_projections(work):
    shape = {"seq_len": 64, "heads": 4, "kv_heads": 2, "head_dim": 8, "batch": 3}
    inner, module = work(**shape), work(**shape, variant="multihead-dilated-sdpa")
    projections = 2 * 3 * 64 * 32 * (32 + 2 * 16 + 32)
    assert module.useful_flops() - inner.useful_flops() == projections


def test_the_same_seed_gives_the_same_tensors_and_another_another(case):
    a, b, c = (build(case(seed=s), "cpu").inputs[0] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("n", [1, 5, 40, 8192, 1_000_000])
def test_sampled_rows_hold_the_ends(n):
    rows = check.sample_rows(n, 0)
    assert rows[0] == 0 and rows[-1] == n - 1 and len(rows.unique()) == len(rows)
    assert len(rows) == min(n, 64) or (n == 1_000_000 and len(rows) == 16)


def test_gradients_of_sampled_rows_are_those_of_a_masked_loss(case):
    work = build(case(pass_="forward_backward", variant="dilated-gather"), "cpu")
    rows = torch.tensor([0, 7, 39])
    _, reference = work.recompute(rows, torch.float64, dense=False)
    for got, expected in zip(work.limited_to(rows).gradients(), reference, strict=True):
        assert (got - expected).abs().max() < 2e-6
    outside = torch.ones(40, dtype=torch.bool)
    outside[rows] = False
    assert work.limited_to(rows).gradients()[0][:, outside].abs().max() == 0


def test_peak_memory_sees_a_temporary_and_not_the_inputs(case):
    work = build(case(seq_len=4096, heads=8, kv_heads=8, head_dim=64, batch=1), "cpu")
    output_bytes = 4096 * 8 * 64 * 4
    held = 8 * output_bytes

    def with_temporary(*inputs):
        torch.ones(held // 4).sum()
        return torch.zeros(output_bytes // 4)

    def peak():
        measure.prepare("cpu")
        work.run = with_temporary
        return measure.peak_memory(work.step, "cpu")[1]

    found = children.run(peak, (), deadline=time.monotonic() + 60)
    assert held * 0.95 <= found.value <= (held + output_bytes) * 1.1, found


def test_a_peak_on_a_cpu_is_what_is_held_at_once():
    size = 12 * 2**20  # below the size from which glibc itself gives buffers back
    code = f"""
import torch
from experiments import measure

def step():
    for count in range(6):
        torch.ones({size} // 4 + 1024 * count)
        torch.ones({size} // 2 + 1024 * count)

measure.prepare("cpu")
step()
print(measure.peak_memory(step, "cpu")[1])
"""
    # In a process of its own, as a replicate is: what this one's heap once held, it fills again.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1.9 * size < int(found.stdout) < 2.5 * size
