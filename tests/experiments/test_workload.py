"""What is counted: FLOPs, density, peak memory; and that the check sees what it should."""

import pytest
import torch

from experiments import check, measure
from experiments.workload import build, density, useful_flops


def test_dense_flops_are_the_textbook_number(case):
    dense = {"variant": "dense", "batch": 2, "seq_len": 128, "heads": 4, "head_dim": 16}
    full = case(**dense, is_causal=False)
    assert useful_flops(full) == 4 * 16 * 2 * 4 * 128 * 128
    causal = case(**dense, is_causal=True)
    assert useful_flops(causal) == 4 * 16 * 2 * 4 * 128 * 129 // 2
    both = case(**dense, is_causal=False, pass_="forward_backward")
    assert useful_flops(both) == 3.5 * useful_flops(full)
    assert density(full) == density(causal) == 1.0


def test_dilated_flops_are_those_of_longnet_equation_17(case):
    shape = {"seq_len": 8192, "heads": 8, "kv_heads": 8, "head_dim": 64, "batch": 1}
    point = case(
        **shape,
        is_causal=False,
        segment_lengths=(2048, 4096, 8192),
        dilation_rates=(1, 2, 4),
    )
    pairs_per_query = 2048 / 1 + 4096 / 4 + 8192 / 16
    assert useful_flops(point) == 4 * 64 * 8 * 8192 * pairs_per_query
    assert density(point) == pairs_per_query / 8192


def test_a_module_counts_its_projections(case):
    shape = {"seq_len": 64, "heads": 4, "kv_heads": 2, "head_dim": 8, "batch": 3}
    inner, module = case(**shape), case(**shape, variant="multihead-dilated-sdpa")
    projections = 2 * 3 * 64 * 32 * (32 + 2 * 16 + 32)
    assert useful_flops(module) - useful_flops(inner) == projections


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
    for got, expected in zip(work.gradients(rows), reference, strict=True):
        assert (got - expected).abs().max() < 2e-6
    outside = torch.ones(40, dtype=torch.bool)
    outside[rows] = False
    assert work.gradients(rows)[0][:, outside].abs().max() == 0


def test_peak_memory_sees_a_temporary_and_not_the_inputs(case):
    measure.prepare("cpu")
    work = build(case(seq_len=4096, heads=8, kv_heads=8, head_dim=64, batch=1), "cpu")
    output_bytes = 4096 * 8 * 64 * 4
    held = 8 * output_bytes

    def with_temporary(*inputs):
        torch.ones(held // 4).sum()
        return torch.zeros(output_bytes // 4)

    work.run = with_temporary
    _, peak = measure._peak_memory(work, "cpu")
    assert held * 0.95 <= peak <= (held + output_bytes) * 1.1
