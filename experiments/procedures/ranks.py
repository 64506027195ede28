"""A case over several ranks: one process per rank, each with its own core or card."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import statistics
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from experiments import check, measure
from experiments.case import Case
from experiments.die_with_parent import die_with_parent
from experiments.procedures.attention import make_reference
from experiments.workload import Workload, build
from models.patterns.orders import shard, unshard
from models.ring.exchange import Traffic, traffic

__all__ = ["RankFailed", "make_reference", "replicate"]


class RankFailed(Exception):
    """A rank gave no result; the message says which, and why."""


def replicate(case: Case, device: str, reference: Path, limits: dict) -> dict:
    """What `attention.replicate` returns of a case over ranks, and "ranks"; CheckFailed if wrong.

    To be called in a process that has not yet run a torch op on several threads: it forks.
    """
    if case.simulated:
        return _simulated(case, device, reference, limits)
    return _spread(case, device, reference, limits)


def _simulated(case: Case, device: str, reference: Path, limits: dict) -> dict:
    """All virtual ranks are checked and their traffic counted; the busiest one is timed, alone."""
    measure.prepare(device)
    work = build(case, device)
    busiest = work.one_rank()
    _, peak = measure.peak_memory(_step_of(work, busiest), device)
    error = check.compare_whole(work, work.step(), reference)
    samples = measure.take_samples(_step_of(work, busiest), device, limits)
    of_ranks = []
    for rank in range(case.world_size):
        step = _step_of(work, work.one_rank(rank))
        with traffic() as counted:
            step()
        own_peak = peak if rank == busiest.rank else None
        of_ranks.append(_describe(rank, counted, own_peak, waits=False))
    return {**samples, "peak_memory_bytes": peak, "error": error, "ranks": of_ranks}


def _step_of(work: Workload, one):
    """A pass of one virtual rank, a `models.ring.simulated.OneRank`."""
    if work.cotangent is None:
        return one.forward
    cut = shard(work.cotangent, one.rank, work.case.world_size, work.variant.shard_order)
    return partial(one.forward_backward, cut.contiguous())


def _spread(case: Case, device: str, reference: Path, limits: dict) -> dict:
    """A sample is the wall time from a barrier until the last rank is done."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="attention-ranks-") as folder:
        children, receivers = [], []
        for rank in range(case.world_size):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (rank, case, device, reference, limits, Path(folder), sender)
            children.append(context.Process(target=_rank, args=arguments))
            children[-1].start()
            sender.close()
            receivers.append(receiver)
        try:
            results = [None] * case.world_size
            waiting = dict(zip(receivers, range(case.world_size), strict=True))
            while waiting:
                for receiver in multiprocessing.connection.wait(list(waiting)):
                    rank = waiting.pop(receiver)
                    results[rank] = _received(rank, receiver)
        finally:
            for child in children:
                child.kill()
                child.join()
    samples, error = results[0]["samples_ms"], results[0]["error"]
    of_ranks = [result["rank"] for result in results]
    peaks = [rank["peak_memory_bytes"] for rank in of_ranks]
    return {
        "samples_ms": samples,
        "peak_memory_bytes": max(peaks),
        "error": error,
        "ranks": of_ranks,
    }


def _describe(rank: int, counted: Traffic, peak: int | None, *, waits: bool) -> dict:
    """The record's object of one rank."""
    return {
        "rank": rank,
        "bytes_sent": counted.bytes_sent,
        "messages_sent": counted.messages_sent,
        "agreement_bytes": counted.agreement_bytes,
        "compute_ms": [1e3 * x for x in counted.compute_s],
        "wait_ms": [1e3 * x for x in counted.wait_s] if waits else [],
        "peak_memory_bytes": peak,
    }


def _received(rank: int, receiver) -> dict:
    try:
        status, value = receiver.recv()
    except EOFError:
        raise RankFailed(f"rank {rank}: its process ended without a result") from None
    if status == "failed":
        raise value
    return value


def _rank(rank: int, case: Case, device: str, reference: Path, limits: dict, folder: Path, sender):
    """Runs in a rank's process: report what it measures, or the error that it met."""
    die_with_parent()
    try:
        sender.send(("ok", _measure(rank, case, device, reference, limits, folder)))
    except (check.CheckFailed, MemoryError, torch.cuda.OutOfMemoryError) as error:
        sender.send(("failed", type(error)(str(error))))
    except Exception as error:  # The parent raises it: nothing is swallowed.
        text = f"rank {rank}: {type(error).__name__}: {error}"
        sender.send(("failed", RankFailed(text)))
    sender.close()
    os._exit(0)


def _measure(rank, case, device, reference, limits, folder) -> dict:
    if device == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank]})
    else:
        torch.cuda.set_device(rank)
    measure.prepare(device)
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl",
        store=dist.FileStore(str(folder / "store"), case.world_size),
        rank=rank,
        world_size=case.world_size,
        timeout=timedelta(seconds=limits["timeout_s"]),
    )
    whole = build(case, device, dist.group.WORLD)
    mine = whole.on_rank(rank)
    rows = check.sample_rows(case.seq_len, case.seed)
    limited = whole.limited_to(rows.to(mine.inputs[0].device)).on_rank(rank)
    del whole
    out, peak = measure.peak_memory(mine.step, device)
    whole_out, grads = _gather(case, mine, out, limited.gradients())
    error = None
    if rank == 0:
        error = check.compare(case, whole_out, grads, reference)
    del out, whole_out, grads, limited
    samples, counted = _time(mine, device, limits)
    return {
        "samples_ms": samples,
        "error": error,
        "rank": _describe(rank, counted, peak, waits=True),
    }


def _gather(case: Case, mine: Workload, out, grads):
    """The whole output and gradients on rank 0; those of parameters are the sum of all ranks'."""
    inputs = len(mine.inputs) if grads else 0
    for grad in grads[inputs:]:
        dist.all_reduce(grad)
    order = mine.variant.shard_order
    parts = [x.cpu() for x in (out, *grads[:inputs])]
    of_ranks = [None] * case.world_size if dist.get_rank() == 0 else None
    dist.gather_object(parts, of_ranks)
    if of_ranks is None:
        return None, None
    found = [unshard(list(x), order).to(out.device) for x in zip(*of_ranks, strict=True)]
    return found[0], [*found[1:], *grads[inputs:]]


def _time(mine: Workload, device: str, limits: dict) -> tuple[list[float], Traffic]:
    """Samples, the same on every rank, and the traffic of the median one."""
    measure.keep_freed_memory()
    counted = []
    elapsed = torch.zeros(1, dtype=torch.float64, device=device)

    def timed() -> float:
        dist.barrier()
        start = time.perf_counter()
        with traffic() as of_step:
            mine.step()
            if device != "cpu":
                torch.cuda.synchronize()
        elapsed[0] = time.perf_counter() - start
        dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
        counted.append(of_step)
        return elapsed.item() * 1e3

    samples = measure.warm_samples(timed, limits)
    del counted[: -len(samples)]
    return samples, counted[samples.index(statistics.median_low(samples))]
