"""Block-sparse attention over packed documents by gathered blocks, against the oracle."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.padding import without_padding
from tests.models.helpers import block_problems
from tests.models.test_block_padding import MIXED, OF_HEADS, assert_right, both_passes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def documents(problem, order, generator):
    """(B, N) ids: runs numbered upwards, runs in any order, or token by token."""
    drawn = torch.randint(0, 4, (problem.batch, problem.n), generator=generator)
    return {"rising": drawn.sort(dim=1).values, "any": drawn}.get(order, drawn // 4 - 7)


@settings(max_examples=25)
@given(
    dtype=st.sampled_from(DTYPES),
    problem=block_problems(),
    order=st.sampled_from(("rising", "any", "one")),
    is_padded=st.booleans(),
    with_lse=st.booleans(),
)
@example(torch.float32, MIXED, "rising", True, True)
@example(torch.bfloat16, MIXED, "rising", True, False)
@example(torch.float16, OF_HEADS, "any", False, False)
@example(torch.bfloat16, OF_HEADS, "any", True, True)
def test_tokens_attend_within_their_document(dtype, problem, order, is_padded, with_lse):
    generator = torch.Generator().manual_seed(problem.seed)
    q, k, v, *grads = (x.detach() for x in problem.tensors(dtype))
    masks = {"document_ids": documents(problem, order, generator)}
    if is_padded:
        padded = torch.rand(problem.batch, problem.n, generator=generator) < 0.3
        masks["key_padding_mask"] = padded
        q, k, v = without_padding(q, k, v, padded)
    tensors = [q, k, v, *grads]
    got = both_passes(problem, tensors, with_lse=with_lse, **masks)
    assert_right(problem, got, tensors, with_lse=with_lse, **masks)


@pytest.mark.parametrize("in_pieces", (False, True))
@pytest.mark.parametrize("problem", (MIXED, OF_HEADS), ids=("shared", "of_heads"))
@pytest.mark.parametrize("where", range(5))
def test_what_one_document_holds_does_not_reach_another(where, problem, in_pieces, monkeypatch):
    """inf or NaN in q, k, v or a cotangent; the documents share blocks and interleave."""
    problem = replace(problem, n=45, heads=4)
    held = (torch.inf, torch.nan)[(where + (problem is MIXED) + in_pieces) % 2]
    monkeypatch.setattr("models.block_schedule._SCORES_PER_TILE", 1 if in_pieces else 1 << 19)
    tensors = [x.detach() for x in problem.tensors(torch.float32)]
    generator = torch.Generator().manual_seed(where)
    ids = torch.randint(0, 3, (problem.batch, problem.n), generator=generator)
    want = both_passes(problem, tensors, document_ids=ids)
    tensors = [x.clone() for x in tensors]
    harmed = ids == 1
    if where < 4:
        tensors[where][harmed] = held
    else:
        tensors[4].transpose(1, 2)[harmed] = held
    got = both_passes(problem, tensors, document_ids=ids)
    others = ~harmed
    pairs = [(got[0], want[0]), (got[1].transpose(1, 2), want[1].transpose(1, 2))]
    for a, b in pairs + list(zip(got[2], want[2], strict=True)):
        torch.testing.assert_close(a[others], b[others], rtol=1e-5, atol=1e-5)
