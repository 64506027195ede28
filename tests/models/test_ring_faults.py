"""Ring attention when a rank is lost, late, or asks for something else: all others say so in time.

Every group here lives for one test, for what happens to it is not to be mended.
"""

import os
import re
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from models import RingError, ring_attention
from models.patterns import BlockMask, DilatedBranches
from models.ring import shard
from models.ring.hops import Gradients, Queries
from tests.models.ring_ranks import Ranks

TIMEOUT_S = 2.0
# Beyond the time-out: reading the others' notes (a second), and two busy cores.
MARGIN_S = 5.0
LOST, SLEEPS_S = 2, 30


@dataclass(frozen=True)
class Inputs:
    """q, k, v of one rank of some, and options of the call."""

    n: int = 64
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    dtype: torch.dtype = torch.float32
    batch: int = 1
    requires_grad: bool = True
    options: dict = field(default_factory=dict)

    def attend(self):
        generator = torch.Generator().manual_seed(0)
        rank, size = dist.get_rank(), dist.get_world_size()
        q, k, v = (
            shard(
                torch.randn(self.batch, self.n, heads, self.dim, generator=generator),
                rank,
                size,
                self.options.get("order", "zigzag"),
            )
            .to(self.dtype)
            .requires_grad_(self.requires_grad)
            for heads in (self.heads, self.kv_heads, self.kv_heads)
        )
        return q, ring_attention(q, k, v, timeout=TIMEOUT_S, **self.options)


def die():
    os._exit(7)


def hang():
    time.sleep(SLEEPS_S)


@contextmanager
def struck(kind: type, number: int, strike):
    """`strike()` when work on the keys of the `number`-th hop begins, 0 for the rank's own."""
    seen, attend = 0, kind.attend

    def watched(*args):
        nonlocal seen
        if seen == number:
            strike()
        seen += 1
        return attend(*args)

    with patch.object(kind, "attend", watched):
        yield


def attend(strikes: dict, phase: str, number: int, inputs: Inputs):
    """This rank's output, or in phase "backward" its gradient of q, if it is not struck."""
    strike = strikes.get(dist.get_rank(), lambda: None)
    if phase == "before":
        strike()
    with struck(Queries, number if phase == "forward" else -1, strike):
        q, out = inputs.attend()
    if phase != "backward":
        return out.detach()
    with struck(Gradients, number, strike):
        return torch.autograd.grad(out.sum(), q)[0]


def after(strike, phase, number=0, lost=LOST, inputs=None, **options):
    """Outcomes of `attend` on four ranks of which `lost` was struck, but for that one."""
    inputs = inputs or Inputs()
    with Ranks(4, **options) as ranks:
        return ranks.outcomes(
            attend, {lost: strike}, phase, number, inputs, limit_s=SLEEPS_S, without=(lost,)
        )


def check_blamed(outcome, rank, lost, said=""):
    """In time, and with an error that names the lost rank before all else."""
    assert isinstance(outcome.error, RingError), outcome
    assert re.match(f"rank {rank} of 4: rank {lost} {said}[^;]*; a message", str(outcome.error))
    assert outcome.seconds < TIMEOUT_S + MARGIN_S


SAID = {die: "closed its connection", hang: "did not answer within 2 s"}
both = pytest.mark.parametrize("strike", (die, hang), ids=lambda x: x.__name__)


@both
@pytest.mark.parametrize("lost", (0, 2))
def test_a_rank_lost_before_the_call_is_named(strike, lost):
    for rank, outcome in enumerate(after(strike, "before", lost=lost)):
        if rank != lost:
            check_blamed(outcome, rank, lost, SAID[strike])


@both
@pytest.mark.parametrize("number", (0, 1))
@pytest.mark.parametrize("phase", ("forward", "backward"))
def test_a_rank_lost_in_the_middle_is_named(phase, number, strike):
    """Those that have had all they need give their result, which is right; the others raise."""
    with Ranks(4) as ranks:
        want = ranks.run(attend, {}, phase, number, Inputs())
    found = after(strike, phase, number)
    failed = [rank for rank, outcome in enumerate(found) if outcome and outcome.error]
    assert failed
    for rank, outcome in enumerate(found):
        if rank in failed:
            check_blamed(outcome, rank, LOST, SAID[strike])
        elif rank != LOST:
            assert torch.equal(outcome.value, want[rank])
