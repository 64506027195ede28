"""Ranks that call with different arguments: all raise, name the odd one, and can go on."""

import re

import pytest
import torch
import torch.distributed as dist

from models import ring_attention
from models.patterns import BlockMask, DilatedBranches
from tests.models.ring_problems import TIMEOUT_S, Inputs

# The odd rank, and the seconds in which all raise: none waits for a time-out.
ODD, SOON_S = 2, TIMEOUT_S + 5


@pytest.fixture
def whole(rings):
    """Four ranks, none of which is lost."""
    return rings.ranks(4)


def differ(inputs: dict):
    """A call by this rank's entry of `inputs`, or that of None."""
    rank = dist.get_rank()
    return inputs.get(rank, inputs[None]).attend()[1].detach()


MASKS = [BlockMask.from_dense(torch.ones(1, 4, 4).tril(d).bool(), 16) for d in (0, 1)]
BRANCHES = [DilatedBranches((16, 64), (1, r)) for r in (2, 4)]
# Arguments of each rank but ODD, arguments of ODD, and the message about it.
MISMATCHES = {
    "batch": ({"batch": 2}, {"batch": 1}, "batch=1: expected batch=2"),
    "heads": ({}, {"heads": 8}, "heads=8: expected heads=4"),
    "kv_heads": ({}, {"kv_heads": 4}, "kv_heads=4: expected kv_heads=2"),
    "head_dim": ({}, {"dim": 16}, "head_dim=16: expected head_dim=8"),
    "dtype": ({}, {"dtype": torch.float64}, "dtype=torch.float64: expected dtype=torch.float32"),
    "no gradient": (
        {},
        {"requires_grad": False},
        "requires_grad=False: expected requires_grad=True",
    ),
    "causal": ({"is_causal": True}, {}, "is_causal=False: expected is_causal=True"),
    "scale": ({"scale": 0.25}, {"scale": 0.5}, "scale=0.5: expected scale=0.25"),
    "order": ({"order": "striped"}, {"order": "contiguous"}, "an order of digest"),
    "backend": ({}, {"backend": "eager"}, "a backend of digest"),
    "mask": ({"pattern": MASKS[0]}, {"pattern": MASKS[1]}, "a pattern of digest"),
    "branches": ({"pattern": BRANCHES[0]}, {"pattern": BRANCHES[1]}, "a pattern of digest"),
    "padding": (
        {"key_padding_mask": torch.zeros(1, 16, dtype=torch.bool)},
        {},
        "key_padding_mask=False: expected key_padding_mask=True",
    ),
    "no pattern": ({"pattern": BRANCHES[0]}, {}, "a pattern of digest"),
}
OPTIONS = ("is_causal", "scale", "order", "backend", "pattern", "seq_len", "key_padding_mask")


def inputs_of(changes):
    options = {name: changes[name] for name in changes if name in OPTIONS}
    return Inputs(
        **{name: changes[name] for name in changes if name not in OPTIONS}, options=options
    )


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_rank_with_other_arguments_is_named(name, whole):
    """By all, itself included; the group is as good as before."""
    usual, differing, said = MISMATCHES[name]
    found = whole.outcomes(differ, {None: inputs_of(usual), ODD: inputs_of(differing)})
    texts = {str(outcome.error) for outcome in found}
    assert all(isinstance(outcome.error, ValueError) for outcome in found) and len(texts) == 1
    (text,) = texts
    assert text.startswith(f"rank {ODD} has {said}") and text.endswith("as on ranks 0, 1, 3")
    assert all(outcome.seconds < SOON_S for outcome in found)
    out = whole.run(differ, {None: Inputs(), ODD: Inputs()})
    assert sum(x.square().sum() for x in out) > 0


def test_of_two_halves_that_with_rank_0_is_right(whole):
    usual, differing = inputs_of({}), inputs_of({"is_causal": True})
    for outcome in whole.outcomes(differ, {None: usual, 1: differing, 3: differing}):
        assert str(outcome.error) == (
            "rank 1 has is_causal=True; rank 3 has is_causal=True: expected is_causal=False, as on "
            "ranks 0, 2"
        )


def test_a_shard_of_a_wrong_length_is_named(whole):
    """16 tokens of 64 each; with 32 of 128 on one rank the whole is 80, of which 20 are due."""
    for outcome in whole.outcomes(differ, {None: Inputs(), ODD: Inputs(n=128)}):
        assert isinstance(outcome.error, ValueError)
        assert str(outcome.error) == (
            "rank 0 has 16 tokens: expected 20 of 80 in the order 'zigzag', as `shard` cuts it; "
            "the ranks have [16, 16, 32, 16]"
        )


@pytest.mark.parametrize(
    "bad, said",
    (
        ({"heads": 3}, "k.shape=.*: expected a number of heads that divides q's 3"),
        ({"scale": -1}, "scale=-1: expected a positive number or None"),
        ({"backend": "fast"}, "backend='fast': expected one of"),
        ({"pattern": "dense"}, "pattern=str: expected one of DilatedBranches"),
        ({"timeout": 0}, "timeout=0: expected a positive number"),
        ({"timeout": "long"}, "timeout='long': expected a positive number"),
        ({"order": "spiral"}, "order='spiral': expected one of"),
        ({"q": None}, "q=NoneType: expected a tensor"),
    ),
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_arguments_of_one_rank_stop_all(bad, said, whole):
    """That rank raises what is wrong with them, the others name the rank."""
    for rank, outcome in enumerate(whole.outcomes(bad_arguments, bad)):
        assert isinstance(outcome.error, ValueError)
        assert outcome.seconds < SOON_S
        refused = f"bad arguments on rank {ODD}; see the error there"
        assert re.match(said if rank == ODD else refused, str(outcome.error))


def bad_arguments(bad: dict):
    given = {"q": torch.zeros(1, 16, bad.get("heads", 4), 8), "timeout": TIMEOUT_S}
    given["k"] = given["v"] = torch.zeros(1, 16, 2, 8)
    if dist.get_rank() == ODD:
        given |= {name: bad[name] for name in bad if name != "heads"}
    elif "heads" in bad:
        given["q"] = torch.zeros(1, 16, 4, 8)
    return ring_attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_a_given_length_is_checked_by_each_rank(whole):
    found = whole.outcomes(differ, {None: inputs_of({"seq_len": 60})})
    assert [str(outcome.error) for outcome in found] == [
        f"seq_len=60: expected {due} tokens on rank {rank} of 4 in the order 'zigzag', got 16"
        for rank, due in enumerate((15, 15, 15, 15))
    ]
