"""A streamed case: one pass over a source is timed and checked, and its memory measured.

A pass takes minutes and holds nothing but chunks. Measuring its peak memory and keeping the
sampled rows of its output cost it nothing, so all of that is done in a timed pass; before it comes
only a short untimed one. On a CPU freed memory goes back at once, in the timed passes too: a heap
that keeps it grows with the number of chunks. The time in the source is measured apart: it is in
`source_ms` and not in `samples_ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from experiments import check, measure
from experiments.case import Case
from experiments.sampled_reference import READ_TOKENS, sampled_reference
from models import dilated
from models.errors import UnsupportedBackend
from models.patterns.branches import DilatedBranches
from models.registry import VARIANTS
from models.sources import GeneratedSource, HostSource, MappedSource
from models.streamed import default_chunk, streamed_dilated_attention

_CUDA_CHUNK = 2**18
REFERENCE = "float64 softmax over each sampled row's own keys, counted once a branch"


def make_reference(case: Case, device: str, reference: Path, kept: Callable = check.anew) -> dict:
    """What `attention.make_reference` does; files of a mapped source are written beside it."""
    measure.prepare(device)
    pattern = _pattern(case)
    pairs = pattern.pairs(case.seq_len, case.heads, case.is_causal)
    dense = DilatedBranches((case.seq_len,), (1,))
    known = {
        "realised_density": pairs / dense.pairs(case.seq_len, case.heads, case.is_causal),
        "useful_flops": 4 * case.head_dim * case.batch * pairs,
    }
    source = _generated(case, device)
    q = torch.empty((1, 1, case.heads, case.head_dim), dtype=source.dtype, device=device)
    try:
        known["backend"] = f"streamed, {dilated.resolve_backend(q, 'auto')}"
    except UnsupportedBackend as error:
        return {**known, "unsupported": str(error)}
    rows = check.sample_rows(case.seq_len, case.seed)

    def sampled() -> dict:
        exact, plain = sampled_reference(source, pattern, rows, is_causal=case.is_causal)
        return {"out": exact, "baseline": check.relative_rms_of_rows(plain, exact)}

    found = kept({"streamed": case.to_json(), "device": device}, sampled, device)
    # Of the rows that a pass keeps, which are these.
    places = torch.arange(len(rows))
    torch.save({"reference": REFERENCE, "rows": places, **found}, reference)
    if _source_of(case) == "mapped":
        _write_files(case, source, reference.parent)
    return known


def replicate(case: Case, device: str, reference: Path, limits: dict) -> dict:
    """What `attention.replicate` returns of a streamed case, and "source_ms"; or CheckFailed."""
    measure.prepare(device)
    short = _generated(case, device, min(case.seq_len, 2 * _chunk(case, device)))
    _run(case, short, lambda start, out, lse: None)
    open_source = _opener(case, device, reference.parent)
    samples, in_source = [], []
    peak = error = None
    while measure.wants_more(samples, limits):
        kept = _KeptRows(check.sample_rows(case.seq_len, case.seed))
        if peak is None:
            one_pass = partial(_timed, case, open_source(), kept)
            (ms, source_ms), peak = measure.peak_memory(one_pass, device)
            error = check.compare(case, kept.rows(), [], reference)
        else:
            ms, source_ms = _timed(case, open_source(), kept)
        samples.append(ms)
        in_source.append(source_ms)
    return {
        "samples_ms": samples,
        "source_ms": in_source,
        "peak_memory_bytes": peak,
        "error": error,
    }


class _KeptRows:
    """A sink that keeps the rows at ascending `positions` and lets all else go."""

    def __init__(self, positions: torch.Tensor):
        self._positions, self._found = positions, []

    def __call__(self, start: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        here = (self._positions >= start) & (self._positions < start + out.shape[1])
        self._found.append(out[:, self._positions[here] - start].clone())

    def rows(self) -> torch.Tensor:
        """(B, R, H, D)."""
        return torch.cat(self._found, dim=1)


class _Clocked:
    """A source that adds up the time spent in its reads."""

    def __init__(self, source):
        self._source = source
        self._marks: list[tuple] = []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, start: int, stop: int):
        begin = _now(self.device)
        tensors = self._source.read(start, stop)
        self._marks.append((begin, _now(self.device)))
        return tensors

    def ms(self) -> float:
        """Milliseconds in all reads so far."""
        return sum(_between(*pair) for pair in self._marks)


def _timed(case: Case, source, sink) -> tuple[float, float]:
    """One pass: ms without the source, and ms in it."""
    clocked = _Clocked(source)
    begin = _now(source.device)
    _run(case, clocked, sink)
    end = _now(source.device)
    in_source = clocked.ms()
    return _between(begin, end) - in_source, in_source


def _now(device: torch.device):
    """A mark in time: an event on the stream of a CUDA device, else seconds."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin, end) -> float:
    if isinstance(begin, float):
        return (end - begin) * 1e3
    end.synchronize()
    return begin.elapsed_time(end)


def _run(case: Case, source, sink) -> None:
    options = {"is_causal": case.is_causal, "chunk": _chunk(case, source.device.type)}
    branches = (case.segment_lengths, case.dilation_rates)
    streamed_dilated_attention(source, *branches, sink=sink, **options)


def _chunk(case: Case, device: str) -> int:
    """Tokens per chunk: the least possible, and on a GPU as many times that as fill it."""
    least = default_chunk(case.seq_len, case.segment_lengths)
    return least if device == "cpu" else least * max(1, _CUDA_CHUNK // least)


def _pattern(case: Case) -> DilatedBranches:
    return DilatedBranches(case.segment_lengths, case.dilation_rates)


def _source_of(case: Case) -> str:
    return VARIANTS[case.variant].options["source"]


def _generated(case: Case, device: str, seq_len: int | None = None) -> GeneratedSource:
    return GeneratedSource(
        seq_len or case.seq_len,
        batch=case.batch,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        dtype=getattr(torch, case.dtype),
        device=device,
        seed=case.seed,
    )


def _opener(case: Case, device: str, folder: Path):
    """A function that opens the case's source anew; all kinds give the same values."""
    kind = _source_of(case)
    if kind == "mapped":
        return lambda: MappedSource(*_files(folder), device)
    if kind == "host":
        # The input is in memory before a pass, and does not count as memory of the pass.
        held = [x.cpu().clone() for x in _generated(case, device).read(0, case.seq_len)]
        return lambda: HostSource(*held, device)
    return lambda: _generated(case, device)


def _files(folder: Path) -> list[Path]:
    return [folder / f"{name}.npy" for name in "qkv"]


def _write_files(case: Case, source: GeneratedSource, folder: Path) -> None:
    shapes = [(case.batch, case.seq_len, h, case.head_dim) for h in source.heads_of_tensors]
    dtype = np.dtype(case.dtype)
    opened = [
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        for path, shape in zip(_files(folder), shapes, strict=True)
    ]
    for start in range(0, case.seq_len, READ_TOKENS):
        stop = min(start + READ_TOKENS, case.seq_len)
        for array, x in zip(opened, source.read(start, stop), strict=True):
            array[:, start:stop] = x.cpu().numpy()
