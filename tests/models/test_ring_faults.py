"""Ring attention when a rank is lost or late: all others raise in time, and name it.

A group that loses a rank cannot be used again, so each of these tests starts its own.
"""

import os
import re
import signal
import time
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from models import RingError
from models.patterns import DilatedBranches
from models.ring.hops import GradientAccumulator, OutputAccumulator
from tests.models.ring_problems import TIMEOUT_S, Inputs
from tests.models.ring_ranks import Ranks

# Beyond the time-out: reading the others' reports (two seconds), and two busy cores.
MARGIN_S = 5.0
LOST, SLEEPS_S = 2, 30


def die():
    os._exit(7)


def hang():
    time.sleep(SLEEPS_S)


@contextmanager
def struck(kind: type, number: int, strike):
    """Call `strike()` when work on the keys of hop `number` begins, 0 for the rank's own."""
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
    """This rank's output, or in phase "backward" its gradient of q, unless it is struck."""
    strike = strikes.get(dist.get_rank(), lambda: None)
    if phase == "before":
        strike()
    with struck(OutputAccumulator, number if phase == "forward" else -1, strike):
        q, out = inputs.attend()
    if phase != "backward":
        return out.detach()
    with struck(GradientAccumulator, number, strike):
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


@pytest.fixture
def whole(rings):
    """Four ranks, none of which is lost."""
    return rings.ranks(4)


def test_a_job_that_hangs_fails_the_test():
    with (
        Ranks(2) as ranks,
        pytest.raises(AssertionError, match=r"ranks \[0, 1\] took more than 1 s"),
    ):
        ranks.run(time.sleep, 30, limit_s=1)


def test_a_job_that_fails_shows_each_ranks_error(whole):
    with pytest.raises(AssertionError, match="(?s)rank 2: .*ZeroDivisionError"):
        whole.run(divmod, 1, 0)


SAID = {die: "closed its connection", hang: "did not answer within 1.5 s"}


@pytest.mark.parametrize(("strike", "lost"), ((hang, 0), (die, 2)))
def test_a_rank_lost_before_the_call_is_named(strike, lost):
    for rank, outcome in enumerate(after(strike, "before", lost=lost)):
        if rank != lost:
            check_blamed(outcome, rank, lost, SAID[strike])


@pytest.mark.parametrize(
    ("phase", "number", "strike"),
    (("forward", 0, die), ("forward", 1, hang), ("backward", 0, hang), ("backward", 1, die)),
)
def test_a_rank_lost_in_the_middle_is_named(phase, number, strike, whole):
    found = after(strike, phase, number)
    assert any(outcome.error for outcome in found if outcome)
    check_rest(found, whole.run(attend, {}, phase, number, Inputs()), strike)


def check_rest(found, want, strike=None):
    """Ranks that received all they need return their result, which is correct; others raise."""
    failed = [rank for rank, outcome in enumerate(found) if outcome and outcome.error]
    for rank, outcome in enumerate(found):
        if rank in failed:
            check_blamed(outcome, rank, LOST, SAID.get(strike, ""))
        elif rank != LOST:
            assert torch.equal(outcome.value, want[rank])


@pytest.mark.parametrize(
    ("phase", "strike"),
    (("before", die), ("forward", hang), ("backward", hang), ("backward", die)),
)
def test_a_rank_lost_by_the_all_gather_is_named(phase, strike, whole):
    """Collectives name nobody, but all ranks that are left report, which leaves the lost one."""
    inputs = Inputs(is_gathered=True, options={"pattern": DilatedBranches((16, 64), (1, 2))})
    check_rest(after(strike, phase, inputs=inputs), whole.run(attend, {}, phase, 0, inputs))


def skip_backward(inputs):
    """The backward pass on all ranks but LOST, which skips it and stays."""
    q, out = inputs.attend()
    if dist.get_rank() != LOST:
        torch.autograd.grad(out.sum(), q)


def test_a_rank_without_a_backward_pass_is_named():
    with Ranks(4) as ranks:
        for rank, outcome in enumerate(ranks.outcomes(skip_backward, Inputs())):
            if rank != LOST:
                check_blamed(outcome, rank, LOST, "did not answer within 1.5 s")


def attend_twice(inputs):
    """The second error, and the seconds to it, of two calls without rank LOST."""
    if dist.get_rank() == LOST:
        os._exit(7)
    with pytest.raises(RingError) as first:
        inputs.attend()
    start = time.perf_counter()
    with pytest.raises(RingError) as second:
        inputs.attend()
    return str(first.value), str(second.value), time.perf_counter() - start


def test_a_group_that_lost_a_rank_raises_at_once():
    with Ranks(4) as ranks:
        for rank, outcome in enumerate(ranks.outcomes(attend_twice, Inputs())):
            if rank != LOST:
                first, second, seconds = outcome.value
                assert second == f"the group lost a rank and cannot be used again: {first}"
                assert seconds < TIMEOUT_S


def test_the_store_may_die_with_rank_0():
    """The error says what each rank knows by itself, and that the store is gone."""
    found = after(die, "forward", 1, lost=0, store="rank 0")
    failed = [str(outcome.error) for outcome in found if outcome and outcome.error]
    assert failed and all("the group's store is gone" in text for text in failed)
    assert all(outcome.seconds < TIMEOUT_S + MARGIN_S for outcome in found if outcome)
    assert any(re.match(r"rank \d of 4: rank 0 closed its connection", text) for text in failed)


def stop_rank_0(inputs):
    """A call while the process of rank 0, and the store in it, is stopped."""
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    return inputs.attend()


def test_the_store_may_stop_with_rank_0():
    with Ranks(4, store="rank 0") as ranks:
        found = ranks.outcomes(stop_rank_0, Inputs(), without=(0,))
    for rank, outcome in enumerate(found):
        if rank:
            check_blamed(outcome, rank, 0, "did not answer within 1.5 s")
