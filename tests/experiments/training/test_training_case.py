"""Cases of training: which are valid, their names, and the way through a record."""

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import grid, procedures
from experiments.case import COLUMNS, PATTERNS, Case, CaseError
from experiments.training.case import HEAD_OFFSETS, TrainingCase
from experiments.training.recipes import RECIPES
from models.patterns.branches import HEAD_OFFSETS as OF_BRANCHES
from models.registry import VARIANTS
from tests.experiments.training.cases import training_case


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {},
            "dilated-sdpa_b2_n32_h2_d8_float32_causal_forward_backward_w8+32_r1+4_recall-smoke",
        ),
        (
            {"head_offset": "block", "heads": 4, "kv_heads": 2, "seed": 3},
            "dilated-sdpa_b2_n32_h4+2_d8_float32_causal_forward_backward_w8+32_r1+4_seed3"
            "_block-offset_recall-smoke",
        ),
        (
            {"variant": "dense", "dtype": "bfloat16", "recipe": "text-smoke"},
            "dense_b2_n32_h2_d8_bfloat16_causal_forward_backward_text-smoke",
        ),
        (
            {"variant": "block-sparse-sdpa", "pattern": "top_k"},
            "block-sparse-sdpa_b2_n32_h2_d8_float32_causal_forward_backward_top_k-0.5-4"
            "_recall-smoke",
        ),
    ],
)
def test_a_name_ends_with_the_recipe(changes, name):
    assert training_case(**changes).name == name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"recipe": ""}, "recipe='': expected one of recall-smoke, text-smoke"),
        ({"recipe": "none-such"}, "recipe='none-such': expected one of recall-smoke"),
        ({"recipe": {"steps": 4}}, "recipe={'steps': 4}: expected one of recall-smoke"),
        ({"recipe": None}, "recipe=None: expected one of recall-smoke"),
        ({"head_offset": "paper"}, "head_offset='paper': expected one of modulo, block"),
        ({"head_offset": None}, "head_offset=None: expected one of modulo, block"),
        (
            {"variant": "dense", "head_offset": "block"},
            "head_offset='block': expected modulo, dense has no other",
        ),
        (
            {"variant": "head-partitioned", "head_offset": "block"},
            "head_offset='block': expected modulo, head-partitioned has no other",
        ),
        ({"is_causal": False}, "is_causal=False: expected true, of a training"),
        ({"pass_": "forward"}, "pass='forward': expected forward_backward, of a training"),
        ({"dtype": "float16"}, "dtype='float16': expected float32 or bfloat16, of a training"),
        ({"dtype": "float64"}, "dtype='float64': expected float32 or bfloat16, of a training"),
        (
            {"variant": "ring-standard", "world_size": 2, "simulated": True},
            "world_size=2: expected none, of a training",
        ),
        # As of other cases.
        ({"batch": 0}, "batch=0: expected an integer >= 1"),
        ({"kv_heads": 3}, "kv_heads=3: expected a divisor of heads=2"),
        ({"dilation_rates": None}, "segment_lengths and dilation_rates: give both or neither"),
    ],
)
def test_what_is_wrong_is_told_with_field_value_and_what_was_expected(changes, told):
    with pytest.raises(CaseError) as caught:
        training_case(**changes)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_head_offsets_are_those_of_branches():
    assert HEAD_OFFSETS == OF_BRANCHES


counts = st.integers(1, 2**31)
branches = st.lists(st.tuples(counts, counts), min_size=1, max_size=5).map(
    lambda pairs: [*zip(*pairs, strict=True)]
)
blocks = st.tuples(st.sampled_from(PATTERNS), st.floats(0, 1, exclude_max=True), counts)
TRAINED = sorted(
    name for name, one in VARIANTS.items() if procedures.PROCEDURES["training"].can_measure(one)
)


@st.composite
def cases(draw):
    """Any case of training of a variant that a model can attend by."""
    variant, kv_heads = draw(st.sampled_from(TRAINED)), draw(st.integers(1, 64))
    takes, offsets = VARIANTS[variant].takes, ["modulo"]
    pattern = {}
    if takes == "branches":
        pattern = dict(zip(("segment_lengths", "dilation_rates"), draw(branches), strict=True))
        offsets += ["block"] * (VARIANTS[variant].pattern_class == "DilatedBranches")
    elif takes == "blocks":
        pattern = dict(zip(("pattern", "sparsity", "block_size"), draw(blocks), strict=True))
    return TrainingCase(
        variant=variant,
        **{key: draw(counts) for key in ("batch", "seq_len", "head_dim")},
        heads=kv_heads * draw(st.integers(1, 64)),
        kv_heads=kv_heads,
        dtype=draw(st.sampled_from(("float32", "bfloat16"))),
        is_causal=True,
        pass_="forward_backward",
        seed=draw(st.integers(0, 2**31)),
        recipe=draw(st.sampled_from(sorted(RECIPES))),
        head_offset=draw(st.sampled_from(offsets)),
        **pattern,
    )


@given(cases(), cases())
def test_names_differ_where_cases_do(one, other):
    assert (one.name == other.name) == (one == other)


@given(cases(), cases())
def test_a_name_changes_with_every_field(one, other):
    together = [(f.name,) for f in fields(TrainingCase)]
    together += [("segment_lengths", "dilation_rates"), ("heads", "kv_heads")]
    for keys in (*together, ("pattern", "sparsity", "block_size")):
        try:
            changed = replace(one, **{key: getattr(other, key) for key in keys})
        except CaseError:
            continue
        assert (changed.name == one.name) == (changed == one), keys


@given(cases())
def test_a_case_survives_the_way_through_a_record(one):
    written = json.loads(json.dumps(one.to_json()))
    found = procedures.case_from({"variant": one.variant, **written})
    assert type(found) is TrainingCase and found == one


@given(cases())
def test_the_attention_of_a_case_is_another_case(one):
    attention = Case(**{f.name: getattr(one, f.name) for f in fields(Case)})
    assert attention != one and one.name.startswith(f"{attention.name}_")
    found = procedures.case_from({"variant": one.variant, **attention.to_json()})
    assert type(found) is Case and found == attention


def test_no_two_cases_of_any_grid_share_a_name():
    cases = {*grid.cases()}
    assert len({case.name for case in cases}) == len(cases)
    assert {type(case) for case in cases} == {Case, TrainingCase}


def test_a_row_has_all_fields():
    row = training_case(variant="dense", head_offset="modulo").cells()
    assert tuple(row) == (*COLUMNS, "recipe", "head_offset")
    assert (row["pass"], row["recipe"], row["head_offset"]) == (
        "forward_backward",
        "recall-smoke",
        "modulo",
    )
    assert row["segment_lengths"] is None and math.isnan(row["sparsity"])
    assert training_case().params()["recipe"] == "recall-smoke"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("variant", "batch"), Case),
        (("variant", "recipe"), TrainingCase),
        (("variant", "head_offset"), TrainingCase),
        (("variant", "speed"), Case),
        ((), Case),
    ],
)
def test_the_class_of_a_case_is_told_by_its_keys(keys, expected):
    assert procedures.class_of(keys) is expected


def test_an_unknown_key_of_a_case_of_attention_is_told_as_such(case):
    values = {"variant": "dense", **case(variant="dense").to_json(), "speed": 9}
    with pytest.raises(CaseError, match="unknown key 'speed'.*seed$"):
        procedures.case_from(values)
    with pytest.raises(CaseError, match="unknown key 'speed'.*recipe, head_offset$"):
        procedures.case_from({**values, "recipe": "recall-smoke"})


def test_the_procedure_of_a_case_follows_from_its_class(case):
    assert procedures.of_case(case(variant="dense")).name == "attention"
    ring = case(variant="ring-standard", world_size=2, simulated=True)
    assert procedures.of_case(ring).name == "ranks"
    assert procedures.of_case(training_case(variant="dense")).name == "training"


def test_without_a_name_no_variant_has_two_procedures():
    chosen = {name: procedures.choose(name) for name in VARIANTS}
    assert set(chosen.values()) == {"attention", "ranks", "streamed", "replica"}
    assert {procedures.choose(name, ["training"]) for name in TRAINED} == {"training"}
    with pytest.raises(ValueError, match="attention and training can both measure dense: name one"):
        procedures.choose("dense", ["attention", "training"])
    for name in sorted({*VARIANTS} - {*TRAINED}):
        with pytest.raises(ValueError, match=f"procedure training cannot measure {name}: expected"):
            procedures.choose(name, ["training"])
