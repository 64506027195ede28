"""FLOPs of a training step: the closed form against the model's own products and pairs."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from experiments.check import anew
from experiments.cost.pairs import dense_pairs, useful_flops, whole_pairs
from experiments.procedures import training as procedure
from experiments.training import sources
from experiments.training.flops import matrices, matrix_flops
from experiments.training.model import language_model
from experiments.training.recipes import RECIPES, run_config
from models.longnet import LongNetLM
from models.patterns.branches import DilatedBranches, HeadPartition
from models.registry import VARIANTS
from tests.experiments.training.cases import training_case

RAGGED = {"seq_len": 43, "segment_lengths": (6, 17, 64), "dilation_rates": (1, 3, 4)}
CASES = [
    training_case(variant="dense"),
    training_case(variant="dense", heads=4, kv_heads=1, seq_len=21, batch=3),
    training_case(variant="dense", recipe="text-smoke", seq_len=64),
    training_case(),
    training_case(heads=6, kv_heads=2, **RAGGED),
    training_case(heads=6, kv_heads=3, head_offset="block", **RAGGED),
    training_case(heads=2, head_offset="block", **RAGGED),
    training_case(variant="dilated-detached", heads=4, kv_heads=2, head_offset="block", **RAGGED),
    training_case(variant="head-partitioned", heads=4, **RAGGED),
    training_case(variant="block-sparse-sdpa", heads=4, kv_heads=2),
    training_case(variant="block-sparse-sdpa", pattern="top_k"),
    training_case(variant="block-sparse-sdpa", pattern="random", sparsity=0.7, seq_len=64),
]


def _ids(cases):
    return [f"{c.variant}-h{c.heads}+{c.kv_heads}-{c.pattern or c.head_offset}" for c in cases]


def _model(case):
    config = run_config(case, 0)
    source = sources.build(config.data)
    return source, LongNetLM(language_model(config, source))


@pytest.mark.parametrize("case", CASES, ids=_ids(CASES))
def test_the_weights_that_multiply_are_those_of_the_model(case):
    _, model = _model(case)
    # Those of the embedding are of the output too.
    assert matrices(case) == sum(one.numel() for one in model.parameters() if one.dim() == 2)


@pytest.mark.parametrize("case", CASES, ids=_ids(CASES))
def test_the_flops_of_matrices_are_those_of_a_step(case):
    source, model = _model(case)
    batch = source.batch("train", 0)
    with FlopCounterMode(display=False) as counter:
        model(batch.inputs).float().square().mean().backward()
    counted = counter.get_flop_counts()["Global"]
    # Attention's own are products of batches, or fused.
    names = (torch.ops.aten.mm, torch.ops.aten.addmm)
    assert matrix_flops(case) == sum(counted[name] for name in names)


def test_a_step_of_one_layer_by_hand():
    case = training_case(variant="dense", heads=4, kv_heads=2, head_dim=8, seq_len=16, batch=3)
    recipe = RECIPES[case.recipe]
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 2 * recipe.ffn_ratio * 32 * 32
    weights = recipe.layers * layer + recipe.vocab_size * 32
    assert matrix_flops(case) == 6 * 3 * 16 * weights
    attention = recipe.layers * 3.5 * 4 * 8 * 3 * 4 * (16 * 17 // 2)
    assert useful_flops(case) == 6 * 3 * 16 * weights + attention


def _held(case) -> int:
    """Pairs of all heads, counted one by one."""
    n, takes = case.seq_len, VARIANTS[case.variant].takes
    below = torch.ones(n, n, dtype=torch.int64).tril()
    if takes is None:
        return case.heads * int(below.sum())
    is_partition = VARIANTS[case.variant].pattern_class == "HeadPartition"
    made = HeadPartition if is_partition else partial(DilatedBranches, head_offset=case.head_offset)
    pattern = made(case.segment_lengths, case.dilation_rates)
    rows = torch.arange(n)
    counts = (pattern.counts(head, case.heads, rows, n) * below for head in range(case.heads))
    return sum(int(one.sum()) for one in counts)


def _of_attention(case) -> float:
    per_pair = 3.5 * 4 * case.head_dim * case.batch * RECIPES[case.recipe].layers
    return (useful_flops(case) - matrix_flops(case)) / per_pair


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.pattern is None],
    ids=_ids([case for case in CASES if case.pattern is None]),
)
def test_pairs_are_those_that_the_pattern_holds(case):
    assert _of_attention(case) == _held(case)


@given(
    heads=st.integers(1, 9),
    seq_len=st.integers(2, 70),
    branches=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 9)), min_size=1, max_size=3),
    head_offset=st.sampled_from(["modulo", "block"]),
)
def test_pairs_of_ragged_branches(heads, seq_len, branches, head_offset):
    lengths, rates = zip(*branches, strict=True)
    case = training_case(
        heads=heads,
        seq_len=seq_len,
        segment_lengths=lengths,
        dilation_rates=rates,
        head_offset=head_offset,
    )
    assert whole_pairs(case) == _held(case)
    assert _of_attention(case) == pytest.approx(_held(case), rel=1e-12)


@settings(max_examples=20)
@given(
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 16]),
    batch=st.integers(1, 3),
    variant=st.sampled_from(["dense", "dilated-sdpa", "block-sparse-sdpa"]),
)
def test_weights_of_grouped_queries(kv_heads, group, head_dim, batch, variant):
    shape = {"heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": head_dim}
    case = training_case(variant=variant, batch=batch, **shape)
    _, model = _model(case)
    weights = sum(one.numel() for one in model.parameters() if one.dim() == 2)
    assert matrix_flops(case) == 6 * batch * 32 * weights


@pytest.mark.parametrize("case", CASES, ids=_ids(CASES))
def test_what_a_record_says_follows_from_its_case(case, tmp_path, one_core, monkeypatch):
    monkeypatch.setattr(procedure, "_learning", lambda config, kept: {})
    known = procedure.make_reference(case, "cpu", tmp_path / "reference.pt", anew)
    assert known["useful_flops"] == useful_flops(case)
    assert type(known["useful_flops"]) is int
    density = whole_pairs(case) / dense_pairs(case)
    assert known["realised_density"] == pytest.approx(density, rel=1e-12)
    assert known["backend"] and known["learning"] == {}


def test_what_no_backend_can_is_told_with_what_it_would_take(tmp_path, one_core):
    case = training_case(variant="dense-cudnn")
    known = procedure.make_reference(case, "cpu", tmp_path / "reference.pt")
    assert known == {
        "realised_density": 1.0,
        "useful_flops": useful_flops(case),
        "unsupported": "sdpa-cudnn: needs a CUDA device",
    }
    assert not (tmp_path / "reference.pt").exists()
