"""Cases over ranks: what is recorded of real and of simulated ones, and what befalls them."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from experiments import measure as measuring
from experiments.digest import sources
from experiments.procedures import ranks
from experiments.schema import Record
from experiments.workload import build
from models.registry import VARIANTS
from models.ring import passes

SIMULATED = [name for name, variant in VARIANTS.items() if variant.can_be_simulated]
OURS = [*SIMULATED, "distributed-dilated"]
SHAPE = {"batch": 1, "seq_len": 40, "heads": 4, "kv_heads": 2, "head_dim": 8, "is_causal": False}
SHARD_BYTES = 2 * 20 * 2 * 8 * 4  # keys and values of half the tokens

needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a rank has a core of its own"
)


@needs_two_cores
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize("variant", OURS)
def test_two_ranks_give_a_valid_record(measure, variant, passes):
    result = measure(variant=variant, pass_=passes, world_size=2, simulated=False)
    checked = Record.model_validate(result)
    assert checked.status == "ok", checked.reason
    assert checked.error.output.relative_rms <= 2 * checked.error.output.baseline_relative_rms
    (replicate,) = checked.replicates
    assert [rank.rank for rank in replicate.ranks] == [0, 1]
    assert replicate.peak_memory_bytes == max(rank.peak_memory_bytes for rank in replicate.ranks)
    for rank in replicate.ranks:
        # No hop is longer than the sample, which ends when the last rank does.
        spent = sum(rank.compute_ms) + sum(rank.wait_ms)
        assert 0 < spent <= max(replicate.samples_ms)
        assert rank.agreement_bytes > 0


@needs_two_cores
def test_bytes_are_those_of_one_shard_each_way(measure):
    result = measure(
        variant="ring-standard", pass_="forward_backward", world_size=2, simulated=False, **SHAPE
    )
    # Forward the shard; backward it again, and its gradient. All float32.
    sent = [
        (rank["bytes_sent"], rank["messages_sent"]) for rank in result["replicates"][0]["ranks"]
    ]
    assert sent == [(3 * SHARD_BYTES, 6)] * 2


@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize("variant", SIMULATED)
def test_a_simulated_ring_is_checked_whole_and_timed_by_the_rank(measure, variant, passes):
    result = measure(variant=variant, pass_=passes, world_size=4, simulated=True, **SHAPE)
    checked = Record.model_validate(result)
    assert checked.status == "ok", checked.reason
    (replicate,) = checked.replicates
    assert [rank.rank for rank in replicate.ranks] == [0, 1, 2, 3]
    assert all(rank.wait_ms == [] and rank.agreement_bytes == 0 for rank in replicate.ranks)
    weighed = [r.peak_memory_bytes for r in replicate.ranks if r.peak_memory_bytes is not None]
    assert weighed == [replicate.peak_memory_bytes]
    rank = replicate.ranks[0]
    if VARIANTS[variant].takes is None:
        hops = 4 * (2 if passes == "forward_backward" else 1)
        assert len(rank.compute_ms) == hops
        backward = 3.5 if passes == "forward_backward" else 1
        # A quarter of the queries, all keys.
        assert checked.useful_flops == backward * 4 * 8 * 4 * 10 * 40


def test_a_rank_of_a_module_projects_its_own_tokens(case):
    passes = {"variant": "multihead-ring-dilated", "simulated": True, **SHAPE}
    whole = build(case(world_size=1, **passes), "cpu")
    x = whole.inputs[0]
    assert (whole.one_rank().forward() - whole.module(x, x, x)[0]).abs().max() < 1e-6
    work = build(case(world_size=4, pass_="forward_backward", **passes), "cpu")
    out = work.step()
    for rank in range(4):
        one = work.one_rank(rank)
        of_rank = slice(10 * rank, 10 * rank + 10)
        assert torch.equal(one.tokens, work.inputs[0][:, of_rank])
        assert (one.forward() - out[:, of_rank]).abs().max() < 1e-6
    # Of E x (2 E + 2 Ekv) weights; a rank has a quarter of the tokens.
    projections = 2 * 10 * 32 * (2 * 32 + 2 * 16)
    attention = 4 * 8 * work.one_rank().pairs()
    assert work.useful_flops() == 3 * projections + 3.5 * attention


def test_gradients_of_a_rank_alone_are_those_of_the_module(case, monkeypatch):
    fields = {"variant": "multihead-ring-dilated", "pass_": "forward_backward", **SHAPE}
    work = build(case(world_size=1, simulated=True, **fields), "cpu")
    found, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: found.append(real(*a)) or found[-1])
    work.one_rank().forward_backward(work.cotangent)
    expected = real(work.run(*work.inputs), work.leaves, work.cotangent)
    of_out, of_input = found[0], found[1]
    by_name = dict(
        zip(["x", *(n for n, _ in work.module.named_parameters())], expected, strict=True)
    )
    for name, got in zip(
        ("norm.weight", "norm.bias", "out_proj.weight", "out_proj.bias"), of_out[1:], strict=True
    ):
        assert (got - by_name[name]).abs().max() < 1e-5 * by_name[name].abs().max()
    # Of the projections, the part that belongs to queries.
    queries = slice(0, 32)
    got = of_input[1][queries]
    assert (got - by_name["in_proj.weight"][queries]).abs().max() < 1e-5 * got.abs().max()


def test_more_ranks_than_cores_are_unsupported(measure):
    cores = len(os.sched_getaffinity(0))
    result = measure(variant="ring-standard", world_size=cores + 1, simulated=False)
    assert result["status"] == "unsupported"
    assert f"{cores + 1} ranks need a core each, and here are {cores}" in result["reason"]


@needs_two_cores
def test_a_wrong_output_on_any_rank_is_failed(measure, monkeypatch):
    real = passes.output_results

    def wrong_on_rank_1(*arguments):
        out, lse = real(*arguments)
        return out * (1.001 if dist.get_rank() == 1 else 1), lse

    monkeypatch.setattr(passes, "output_results", wrong_on_rank_1)
    result = measure(variant="ring-standard", world_size=2, simulated=False)
    assert result["status"] == "failed"
    assert result["reason"].startswith("output: relative error")


@needs_two_cores
def test_a_rank_that_dies_is_named(measure, monkeypatch):
    real = passes.output_results

    def dies_on_rank_1(*arguments):
        if dist.get_rank() == 1:
            os._exit(3)
        # Or, on busy cores, it may be the first to tell, of a peer that is gone.
        time.sleep(1)
        return real(*arguments)

    monkeypatch.setattr(passes, "output_results", dies_on_rank_1)
    result = measure(variant="ring-standard", world_size=2, simulated=False)
    assert result["status"] == "failed" and "rank 1" in result["reason"]


@needs_two_cores
def test_a_rank_has_one_core(monkeypatch, case):
    seen = {}

    def prepare(device):
        torch.set_num_threads(1)
        seen["cores"] = os.sched_getaffinity(0)

    monkeypatch.setattr(measuring, "prepare", prepare)
    monkeypatch.setattr(ranks, "build", lambda *_: exit_with(seen["cores"]))

    def exit_with(cores):
        raise RuntimeError(f"cores {sorted(cores)}")

    with pytest.raises(ranks.RankFailed, match=r"rank \d: RuntimeError: cores \[\d+\]"):
        point = case(variant="ring-standard", world_size=2, simulated=False)
        ranks.replicate(point, "cpu", None, {"timeout_s": 30})


def test_other_variants_do_not_hang_on_the_ring():
    found = {path.as_posix() for path in sources("dense")}
    assert not any("/ring/" in path or path.endswith("ranks.py") for path in found)
    of_ring = {path.name for path in sources("ring-standard")}
    assert {"passes.py", "plan.py", "exchange.py", "ranks.py", "simulated.py"} <= of_ring
