"""The attention of a model's layer as a workload: held to the oracle, and what is wrong is seen."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import check
from experiments.case import PATTERNS
from experiments.training.layer_attention import attention_of
from models.patterns.branches import DilatedBranches
from tests.experiments.training.cases import BLOCKS, DILATED, ON_A_CPU, training_case

OFFSETS = [(name, "block") for name in ("dilated-sdpa", "dilated-masked", "dilated-detached")]
CASES = [
    *(training_case(variant=variant, heads=4, kv_heads=2) for variant in ON_A_CPU),
    *(training_case(variant=name, heads=4, head_offset=offset) for name, offset in OFFSETS),
    *(
        training_case(variant=variant, heads=4, kv_heads=2, pattern=pattern, seed=1)
        for variant in BLOCKS
        for pattern in PATTERNS
    ),
    training_case(variant="block-sparse-sdpa", recipe="text-smoke", seq_len=64, sparsity=0.9),
    training_case(dtype="bfloat16"),
    training_case(variant="block-sparse-sdpa", pattern="top_k", dtype="bfloat16"),
]
IDS = [f"{c.variant}-{c.pattern or c.head_offset}-{c.dtype}-{c.seq_len}" for c in CASES]


def _agreement(work, path) -> dict:
    check.write_reference(work, path)
    return check.compare_whole(work, work.step(), path)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_it_agrees_with_the_oracle(case, tmp_path):
    work = attention_of(case, "cpu")
    found = _agreement(work, tmp_path / "reference.pt")
    assert found["rows_checked"] == min(64, case.seq_len)
    eps = torch.finfo(getattr(torch, case.dtype)).eps
    for name, allowance in (("output", 2.0), ("gradient", 3.0)):
        one = found[name]
        if case.variant == "dilated-detached" and name == "gradient":
            assert one is None
            continue
        assert one["relative_rms"] <= max(allowance * one["baseline_relative_rms"], eps)
        assert 0 < one["baseline_relative_rms"] < 10 * eps


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_nothing_after_a_token_changes_what_comes_out_there(case):
    work = attention_of(case, "cpu")
    inputs = [one.detach() for one in work.inputs]
    out = work.run(*inputs)
    for first in (1, case.seq_len // 2, case.seq_len - 1):
        others = [one.clone() for one in inputs]
        for one in others:
            one[:, first:] = one[:, first:].flip(-1) + 1
        changed = work.run(*others)
        assert torch.equal(changed[:, :first], out[:, :first])
        assert not torch.equal(changed[:, first:], out[:, first:])


def _assert_near_the_oracle(work):
    """All rows: of few tokens dense attention's own error is as it happens to be."""
    rows = torch.arange(work.case.seq_len)
    out, gradients = work.recompute(rows, torch.float64, dense=False)
    assert (work.step() - out).abs().max() < 5e-6
    for got, exact in zip(work.gradients(), gradients, strict=True):
        assert (got - exact).abs().max() < 2e-5


@settings(max_examples=12)
@given(
    variant=st.sampled_from(DILATED),
    seq_len=st.integers(2, 75),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 2),
    branches=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 5)), min_size=1, max_size=3),
    head_offset=st.sampled_from(["modulo", "block"]),
)
def test_ragged_branches_agree_with_the_oracle(
    variant, seq_len, kv_heads, group, branches, head_offset
):
    lengths, rates = zip(*branches, strict=True)
    case = training_case(
        variant=variant,
        seq_len=seq_len,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        segment_lengths=lengths,
        dilation_rates=rates,
        head_offset=head_offset,
    )
    work = attention_of(case, "cpu")
    assert work.pattern == DilatedBranches(lengths, rates, head_offset)
    _assert_near_the_oracle(work)


@settings(max_examples=12)
@given(
    variant=st.sampled_from(BLOCKS),
    pattern=st.sampled_from(PATTERNS),
    seq_len=st.integers(2, 75),
    block_size=st.integers(1, 20),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
def test_ragged_blocks_agree_with_the_oracle(variant, pattern, seq_len, block_size, sparsity):
    mask = {"pattern": pattern, "block_size": block_size, "sparsity": sparsity}
    case = training_case(variant=variant, heads=2, kv_heads=1, seq_len=seq_len, **mask)
    work = attention_of(case, "cpu")
    _assert_near_the_oracle(work)


def test_the_offsets_of_heads_are_those_of_the_case():
    fields = {"heads": 4, "dilation_rates": (1, 2)}
    by_case = {name: training_case(head_offset=name, **fields) for name in ("modulo", "block")}
    outs = {name: attention_of(case, "cpu").step() for name, case in by_case.items()}
    assert not torch.equal(outs["modulo"], outs["block"])
    patterns = {name: attention_of(case, "cpu").pattern for name, case in by_case.items()}
    of_heads = {name: [one.offset(1, h, 4) for h in range(4)] for name, one in patterns.items()}
    assert of_heads == {"modulo": [0, 1, 0, 1], "block": [0, 0, 1, 1]}


def test_blocks_that_a_layer_chooses_follow_its_queries():
    """Its mask is that of the tensors: other seeds choose other blocks."""
    cases = [
        training_case(variant="block-sparse-sdpa", pattern="top_k", seed=seed) for seed in (0, 0, 1)
    ]
    one, same, other = (attention_of(case, "cpu").pattern.to_dense() for case in cases)
    assert torch.equal(one, same) and not torch.equal(one, other)
    # Blocks of 4: row i keeps max(1, round((i + 1) / 2)) of i + 1.
    kept = [max(1, round(0.5 * (i + 1))) for i in range(8)]
    assert [one[0].sum(-1).tolist(), one[1].sum(-1).tolist()] == [kept, kept]


def _not_causal(work):
    run = type(work.run)(work.run.func, *work.run.args, **{**work.run.keywords, "is_causal": False})
    return replace(work, run=run)


WRONG = {
    "not causal": (_not_causal, "output: relative error"),
    "a little too large": (
        lambda work: replace(work, run=lambda *qkv: work.run(*qkv) * (1 + 1e-5)),
        "output: relative error 1.0",
    ),
    "of the other keys": (
        lambda work: replace(work, run=lambda q, k, v: work.run(q, k.flip(2), v)),
        "output: relative error",
    ),
    "without a gradient of keys": (
        lambda work: replace(work, run=lambda q, k, v: work.run(q, k.detach() + 0 * k, v)),
        "gradient: relative error 1.0",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_seen(wrong, tmp_path):
    change, told = WRONG[wrong]
    work = attention_of(training_case(), "cpu")
    check.write_reference(work, tmp_path / "reference.pt")
    work = change(work)
    with pytest.raises(check.CheckFailed, match=told):
        check.compare_whole(work, work.step(), tmp_path / "reference.pt")


def test_the_offset_of_another_rule_is_seen(tmp_path):
    fields = {"heads": 4, "dilation_rates": (1, 2)}
    modulo, block = (
        attention_of(training_case(head_offset=name, **fields), "cpu")
        for name in ("modulo", "block")
    )
    check.write_reference(modulo, tmp_path / "reference.pt")
    with pytest.raises(check.CheckFailed, match="output: "):
        check.compare_whole(block, block.step(), tmp_path / "reference.pt")


def test_detached_mixing_is_checked_by_its_values_alone():
    detached = attention_of(training_case(variant="dilated-detached"), "cpu")
    exact = attention_of(training_case(), "cpu")
    assert (detached.case.pass_, exact.case.pass_) == ("forward", "forward_backward")
    assert detached.gradients() == [] and len(exact.gradients()) == 3
    torch.testing.assert_close(detached.step(), exact.step(), rtol=0, atol=1e-6)
