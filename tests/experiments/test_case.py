"""Cases: valid ones, the way through a record, and names that no two share."""

import json
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import grid as grids
from experiments.case import DTYPES, PASSES, PATTERNS, Case, CaseError
from models.registry import VARIANTS


@pytest.mark.parametrize("variant", ["dense", "dilated-sdpa", "block-sparse"])
def test_a_case_survives_the_way_through_a_record(case, variant):
    built = case(variant=variant, seed=3)
    written = json.loads(json.dumps(built.to_json()))
    assert Case.from_mapping({"variant": built.variant, **written}) == built


def test_half_a_block_mask_is_no_case(case):
    with pytest.raises(CaseError, match="missing key 'sparsity': a block mask needs pattern, spar"):
        case(variant="block-sparse", sparsity=None)


def test_kv_heads_must_divide_heads(case):
    with pytest.raises(CaseError, match="kv_heads=3: expected a divisor of heads=4"):
        case(kv_heads=3)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "dilated-sdpa_b2_n40_h4+2_d8_float32_causal_forward_w16+32_r1+3"),
        (
            {"variant": "dense", "is_causal": False, "kv_heads": 4, "pass_": "forward_backward"},
            "dense_b2_n40_h4_d8_float32_forward_backward",
        ),
        (
            {"variant": "block-sparse", "sparsity": 0.75, "seed": 3},
            "block-sparse_b2_n40_h4+2_d8_float32_causal_forward_random-0.75-16_seed3",
        ),
        (
            {"variant": "ring-standard", "world_size": 4, "simulated": True},
            "ring-standard_b2_n40_h4+2_d8_float32_causal_forward_p4-simulated",
        ),
        (
            {"variant": "ring-standard", "world_size": 4, "simulated": False},
            "ring-standard_b2_n40_h4+2_d8_float32_causal_forward_p4",
        ),
    ],
)
def test_a_name_says_what_applies(case, changes, name):
    assert case(**changes).name == name


def test_cases_of_all_tiers_have_names_of_their_own():
    cases = {
        case for name in grids.names() for tier in grids.load(name).tiers.values() for case in
        tier.cases
    }  # fmt: skip
    names = {case.name for case in cases}
    assert len(names) == len(cases) > 2000
    assert max(len(name.encode()) for name in names) <= 200
    # As they stand in file names and commands, unquoted.
    assert all(re.fullmatch(r"[a-z0-9_+.-]+", name) for name in names)


counts = st.integers(1, 2**31)
branches = st.lists(st.tuples(counts, counts), min_size=1, max_size=5).map(
    lambda pairs: [*zip(*pairs, strict=True)]
)
OPTIONAL = {
    ("segment_lengths", "dilation_rates"): branches,
    ("pattern", "sparsity", "block_size"): st.tuples(
        st.sampled_from(PATTERNS), st.floats(0, 1, exclude_max=True), counts
    ),
    ("world_size", "simulated"): st.tuples(counts, st.booleans()),
}


@st.composite
def cases(draw):
    """Any valid case, what its variant takes or not."""
    kv_heads = draw(st.integers(1, 64))
    optional = {}
    for keys, values in OPTIONAL.items():
        if draw(st.booleans()):
            optional |= dict(zip(keys, draw(values), strict=True))
    return Case(
        variant=draw(st.sampled_from(sorted(VARIANTS))),
        **{key: draw(counts) for key in ("batch", "seq_len", "head_dim")},
        heads=kv_heads * draw(st.integers(1, 64)),
        kv_heads=kv_heads,
        dtype=draw(st.sampled_from(DTYPES)),
        is_causal=draw(st.booleans()),
        pass_=draw(st.sampled_from(PASSES)),
        seed=draw(st.integers(0, 2**31)),
        **optional,
    )


@given(cases(), cases())
def test_names_differ_where_cases_do(one, other):
    assert (one.name == other.name) == (one == other)


@given(cases(), cases())
def test_a_name_changes_with_every_field(one, other):
    """Those of `other` put into `one`, alone where that is a case, or those that go together."""
    alone = [(field.name,) for field in fields(Case)]
    for keys in (*alone, *OPTIONAL, ("heads", "kv_heads")):
        try:
            changed = replace(one, **{key: getattr(other, key) for key in keys})
        except CaseError:
            continue
        assert (changed.name == one.name) == (changed == one), keys
