"""Peak memory of a step and samples of its time, in a process made for them."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable

import torch

from experiments import cuda_timer
from experiments.warm_up import LONG_MS, WARM_UP_MS

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare(device: str) -> None:
    """Pin the thread count and touch what is set up once per process, so that no case pays for it.

    Freed memory is given back at once, until a pass is timed.
    """
    give_back_freed_memory()
    # MKL's vector log, first called from two threads at once, now and then gives one of
    # them its low-accuracy form (4e-5 relative; seen in 4 of 300 forks, torch 2.13): the
    # first call is made alone.
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        torch.full((64,), 2.0, dtype=dtype).log().exp()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    small = torch.randn(1, 64, 1, 16, device=device)
    (small.flatten(1) @ small.flatten(1).T).sum().item()
    q = small.transpose(1, 2).requires_grad_()
    torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(step: Callable, device: str) -> tuple[object, int | None]:
    """What a `step()` returns, and its peak memory less the inputs, in bytes."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = step()
        torch.cuda.synchronize()
        return out, torch.cuda.max_memory_allocated() - before
    _give_back_free_memory()
    # Writing 5 resets the peak resident set size (proc(5), /proc/pid/clear_refs).
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = _status_bytes("VmRSS")
    out = step()
    return out, max(0, _status_bytes("VmHWM") - before)


def _give_back_free_memory() -> None:
    """Have the allocator return what it keeps of freed memory, which a step would use unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl keeps nothing
    if trim is not None:
        trim(0)


def give_back_freed_memory() -> None:
    """Have the allocator give freed buffers back at once, so that a peak is what is held at once.

    glibc does so only above a size that it raises by itself, up to 32 MiB, with what is freed; and
    what its heap once held, it fills again: so this comes before anything large.
    """
    _limit_heap(128 * 2**10, 128 * 2**10)


def keep_freed_memory() -> None:
    """Have it keep them, as it does by itself in the end: a timed pass asks for none anew."""
    _limit_heap(32 * 2**20, 64 * 2**20)


def _limit_heap(map_from: int, trim_from: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl keeps nothing
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, map_from)
        mallopt(_M_TRIM_THRESHOLD, trim_from)


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def take_samples(step: Callable, device: str, limits: dict) -> dict:
    """The record's "samples_ms" of `step()`, and on a GPU "timed_by" and "host_ms"."""
    keep_freed_memory()
    if device != "cpu":
        return _time_cuda(step, limits)

    def timed() -> float:
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1e3

    return {"samples_ms": warm_samples(timed, limits)}


def warm_samples(timed: Callable[[], float], limits: dict) -> list[float]:
    """What `timed()`, which makes a pass, returns (ms), of all but the first: see `warm_up.py`."""
    taken = [timed()]
    if taken[0] < LONG_MS:
        while sum(taken) < WARM_UP_MS:
            taken.append(timed())
        taken.clear()
    while wants_more(taken, limits):
        taken.append(timed())
    return taken


def _time_cuda(step: Callable, limits: dict) -> dict:
    timer = cuda_timer.Timer(step, cuda_timer.Card(), warm_ups=3)
    samples: list[float] = []
    while wants_more(samples, limits):
        if len(samples) >= limits["min_samples"] and not timer.may_go_on:
            break
        timed_by, sample = timer.timed_by, timer.sample()
        if timer.timed_by != timed_by:
            samples.clear()
        samples.append(sample)
    return {"samples_ms": samples, "timed_by": timer.timed_by, "host_ms": timer.host_ms}


def wants_more(samples: list[float], limits: dict) -> bool:
    """Whether to go on sampling."""
    if len(samples) < limits["min_samples"]:
        return True
    return len(samples) < limits["max_samples"] and sum(samples) < 1e3 * limits["sample_seconds"]
