"""Whether the numbers of a record can be: what its case, its machine and arithmetic allow.

The bounds are generous, so that nothing that was measured is near one. No torch is imported.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache, lru_cache

from experiments import machine as machines
from experiments import plausible_cards, plausible_trainings
from experiments.case import Case
from experiments.cost.pairs import dense_pairs, useful_flops, whole_pairs
from experiments.digest import ROOT
from experiments.git import git
from experiments.procedures import Procedure
from experiments.provenance import command
from experiments.schema import Agreement, Ceilings, Gauge, Machine, Record, Replicate
from models.registry import VARIANTS

# FLOP/s above those of any core with its matrix unit, and of any card.
PEAKS = {
    "cpu": {"float64": 1e12, "float32": 4e12, "float16": 1.6e13, "bfloat16": 1.6e13},
    "cuda": {"float64": 4e14, "float32": 4e15, "float16": 2e16, "bfloat16": 2e16},
}
# Bytes per second above those of any cache and of any card's memory.
COPIES = {"cpu": 1e13, "cuda": 1e14}
# How many times as fast as the record's own matrix product a pass may be: the fastest published
# is 1.24 times, and 3.5 times where the product was measured beside other work. A CPU may multiply
# half precision more slowly than it attends in it.
MARGIN = 10.0
MARGINS = {("cpu", "float16"): 30.0, ("cpu", "bfloat16"): 30.0}
# A call of a function takes longer.
LEAST_MS = 1e-3
# Of the gauge by kind of device: FLOPs of dense attention and of the product, bytes of the copy.
GAUGES = {
    "cpu": ("float32", 8 * 64 * 2 * 1024 * 1025, 2 * 512**3, 2 * 64 * 2**20),
    "cuda": ("float16", 8 * 64 * 2 * 8192 * 8193, 2 * 8192**3, 2 * 512 * 2**20),
}
# Milliseconds that a gauge is waited for.
GAUGE_MS = 6e4
# Of `experiments.check`: times dense attention's own error, or one unit in the last place.
ALLOWED = {"output": 2.0, "gradient": 3.0}
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Dense attention's own error in these units; of a replica it is that of a sum that cancels.
LARGEST_BASELINE = {False: 1e4, True: 1e7}
# Pairs in closed form are exact where segments say who attends to whom, not of the busiest of
# simulated ranks, which holds whole blocks: see `experiments.cost`.
OF_RANKS, OF_BLOCKS, EXACT = 0.3, 0.05, 1e-6
# Fields that were there from then on: null in a later record says that it was taken out.
CEILINGS_SINCE = datetime(2026, 11, 24, tzinfo=UTC)
HOSTS_SINCE = datetime(2026, 11, 28, tzinfo=UTC)
# Clocks differ, and are set back an hour.
_AHEAD_S = 2 * 3600.0
_OLD_COMMAND = re.compile(r"python -m experiments run( [A-Za-z0-9_.,+=-]+)+", re.ASCII)


def faults(found: Record, procedure: Procedure) -> Iterator[str]:
    """What cannot be in a valid record of a case that `procedure` measures: "field: reason"."""
    yield from _when(found)
    yield from _where(found.machine.model_dump_json(exclude={"cards", "nodes"}))
    yield from plausible_cards.faults(found)
    yield from _command(found)
    yield from _fields(found, procedure)
    yield from _amounts(found)
    yield from _whole(found)
    if found.ceilings is not None:
        yield from _ceilings(found, found.ceilings)
    for number, one in enumerate(found.replicates):
        for fault in _replicate(found, one, procedure):
            yield f"replicates.{number}.{fault}"
    if found.gauges is not None:
        for name in ("before", "after"):
            yield from _gauge(found, name, getattr(found.gauges, name))
    if found.error is not None:
        yield from _error(found)


def _when(found: Record) -> Iterator[str]:
    began = found.started_at.timestamp()
    if found.started_at.year < 2000:
        yield "started_at: is of another century"
    if _is_to_come(began + found.wall_s):
        yield "started_at: is in the future, by this machine's clock"


def _is_to_come(seconds: float) -> bool:
    """Whether a time, in seconds since 1970, is later than now.

    That is by the clock, or where that is behind, by the last commit here.
    """
    return seconds > time.time() + _AHEAD_S and seconds > _last_commit() + _AHEAD_S


@cache
def _last_commit() -> float:
    return float(git(ROOT, "log", "-1", "--format=%ct") or 0)


@lru_cache(maxsize=1024)
def _where(machine: str) -> tuple[str, ...]:
    return (*_faults_of(Machine.model_validate_json(machine)),)


def _faults_of(found: Machine) -> Iterator[str]:
    made = machines.Machine(None, **found.model_dump(exclude={"id", "host", "cards", "nodes"}))
    if found.id != made.id:
        yield f"machine.id: is {found.id}, and {made.id} follows from its device and memory"
    if found.host is not None:
        host = machines.Host(**found.host.model_dump(exclude={"id"}))
        if found.host.id != host.id:
            yield f"machine.host.id: is {found.host.id}, and {host.id} follows from its fields"
    if found.device_kind == "cpu":
        own = (found.cpu, found.memory_bytes, None)
        if (found.device, found.device_memory_bytes, found.driver) != own:
            yield "machine.device: is the CPU, of the machine's name and memory and with no driver"
    elif found.driver is None:
        yield "machine.driver: is null, of a card"


def _command(found: Record) -> Iterator[str]:
    expected = command(found.tier, found.to_case())
    is_old = found.machine.host is None and _OLD_COMMAND.fullmatch(found.command)
    if found.command != expected and not is_old:
        yield f"command: expected {expected}"


def _fields(found: Record, procedure: Procedure) -> Iterator[str]:
    """Fields that are there and may not be, or the other way round."""
    is_ok = found.status == "ok"
    if is_ok and not procedure.is_in(found.replicates):
        yield f"replicates: {procedure.name} gives {' and '.join(procedure.fields)}"
    if is_ok and found.ceilings is None and found.started_at >= CEILINGS_SINCE:
        yield "ceilings: is null, which it is only in records older than the field"
    is_training = "trainings" in procedure.fields
    if (is_ok or found.learning is not None) and (found.learning is not None) != is_training:
        yield "learning: expected null unless models were trained"
    is_replica = VARIANTS[found.variant].replica_of
    if is_ok and (found.deviation is None) == bool(is_replica):
        yield "deviation: expected null unless of a replica"
    if found.deviation is not None and found.deviation.variant != is_replica:
        yield f"deviation.variant: expected {is_replica}"
    if found.machine.host is not None:
        return
    newer = [found.gauges, found.software.tile_tables]
    newer += [value for one in found.replicates for value in (one.timed_by, one.host_ms)]
    if found.started_at >= HOSTS_SINCE or any(value is not None for value in newer):
        yield "machine.host: is null, which it is only in records older than the field"


@cache
def _of_case(case: Case) -> tuple[float, float, float, float]:
    """FLOPs and density, and how far, relatively, a record's may be from each."""
    of_whole = OF_BLOCKS if VARIANTS[case.variant].takes == "blocks" else EXACT
    density = whole_pairs(case) / dense_pairs(case)
    return useful_flops(case), density, OF_RANKS if case.simulated else of_whole, of_whole


def _amounts(found: Record) -> Iterator[str]:
    flops, density, *allowed = _of_case(found.to_case())
    expected_of = {"useful_flops": flops, "realised_density": density}
    for (name, expected), off in zip(expected_of.items(), allowed, strict=True):
        stated = getattr(found, name)
        if stated is not None and abs(stated - expected) > off * expected:
            yield f"{name}: is {stated:g}, and {expected:g} follows from the case"


def _units(found: Record) -> int:
    """Cores or cards at work."""
    if found.machine.device_kind == "cpu":
        return found.machine.cores
    case = found.to_case()
    return case.world_size if case.is_spread else 1


def _least_ms(found: Record) -> tuple[float, float]:
    """What a pass takes at least: on any machine, and by the record's own ceilings."""
    flops, density, off, _ = _of_case(found.to_case())
    # A pair that two branches hold may be computed once.
    flops *= (1 - off) / max(1.0, density)
    kind, dtype = found.machine.device_kind, found.case.dtype
    anywhere = 1e3 * flops / (PEAKS[kind][dtype] * _units(found))
    if found.ceilings is None:
        return max(LEAST_MS, anywhere), 0.0
    cards = 1 if kind == "cpu" else _units(found)
    rate = MARGINS.get((kind, dtype), MARGIN) * found.ceilings.matmul_flops_per_s * cards
    return max(LEAST_MS, anywhere), 1e3 * flops / rate


def _replicate(found: Record, one: Replicate, procedure: Procedure) -> Iterator[str]:
    for name in ("source_ms", "ranks", "calls", "trainings"):
        if getattr(one, name) is not None and name not in procedure.fields:
            yield f"{name}: expected null, {procedure.name} does not give it"
    anywhere, here = _least_ms(found)
    for place, ms in enumerate(one.samples_ms):
        if ms < anywhere:
            yield f"samples_ms.{place}: is {ms:g}, and no machine takes less than {anywhere:g}"
        elif ms < here:
            yield f"samples_ms.{place}: is {ms:g}, and by its ceilings {here:g} is least"
    if one.source_ms is not None and len(one.source_ms) != len(one.samples_ms):
        yield "source_ms: expected as many as samples_ms"
    if one.timed_by is not None and found.machine.device_kind == "cpu":
        yield "timed_by: expected null on a CPU"
    if (one.timed_by is None) != (one.host_ms is None):
        yield "host_ms: expected null exactly where timed_by is"
    if one.peak_memory_bytes == 0 and found.tier != "smoke":
        yield "peak_memory_bytes: is 0, which the output alone is not"
    yield from _memory(found, one)
    if one.trainings is not None and "trainings" in procedure.fields:
        yield from plausible_trainings.faults(found, one.trainings)
    if one.ranks is None:
        return
    if sorted(rank.rank for rank in one.ranks) != list(range(found.case.world_size or 1)):
        yield f"ranks: expected one of each of world_size={found.case.world_size}"
    for place, rank in enumerate(one.ranks):
        if sum(rank.compute_ms) + sum(rank.wait_ms) > _wall_ms(found):
            yield f"ranks.{place}.compute_ms: is more than wall_s together with wait_ms"


def _memory(found: Record, one: Replicate) -> Iterator[str]:
    here = found.machine
    most = here.device_memory_bytes or here.memory_bytes
    held = {"peak_memory_bytes": one.peak_memory_bytes}
    for place, rank in enumerate(one.ranks or []):
        held[f"ranks.{place}.peak_memory_bytes"] = rank.peak_memory_bytes
    if one.calls is not None:
        names = ("first_peak_bytes", "second_peak_bytes", "kept_bytes", "dropped_bytes")
        held |= {f"calls.{name}": getattr(one.calls, name) for name in names}
    for name, size in held.items():
        if size is not None and size > most:
            yield f"{name}: is {size:,}, and the device has {most:,}"


def _wall_ms(found: Record) -> float:
    """With what a rounded time may lack."""
    return 1020 * found.wall_s + 50


def _whole(found: Record) -> Iterator[str]:
    """The times of all replicates together."""
    # A case that is known to fail is not begun.
    if found.wall_s == 0 and found.status != "failed":
        yield "wall_s: is 0"
    spent = sum(sum(one.samples_ms) + sum(one.source_ms or ()) for one in found.replicates)
    spent += sum(one.calls.first_ms for one in found.replicates if one.calls is not None)
    if spent > _wall_ms(found):
        yield f"wall_s: is {found.wall_s:g}, and its samples took {spent / 1e3:g}"


def _ceilings(found: Record, one: Ceilings) -> Iterator[str]:
    kind = found.machine.device_kind
    cores = found.machine.cores if kind == "cpu" else 1
    for name, least, most in (
        ("matmul_flops_per_s", 1e6, PEAKS[kind][found.case.dtype] * cores),
        ("copy_bytes_per_s", 1e6, COPIES[kind]),
    ):
        if not least <= getattr(one, name) <= most:
            yield f"ceilings.{name}: is {getattr(one, name):g}, expected {least:g} to {most:g}"


def _gauge(found: Record, name: str, one: Gauge) -> Iterator[str]:
    kind = found.machine.device_kind
    dtype, dense, product, copied = GAUGES[kind]
    peak = PEAKS[kind][dtype] * (found.machine.cores if kind == "cpu" else 1)
    for key, least in (
        ("dense_ms", 1e3 * dense / peak),
        ("matmul_ms", 1e3 * product / peak),
        ("copy_ms", 1e3 * copied / COPIES[kind]),
    ):
        if not least <= getattr(one, key) <= GAUGE_MS:
            told = f"is {getattr(one, key):g}, expected {least:g} to {GAUGE_MS:g}"
            yield f"gauges.{name}.{key}: {told}"


def _error(found: Record) -> Iterator[str]:
    if found.error.rows_checked > found.case.seq_len:
        yield f"error.rows_checked: is more than seq_len={found.case.seq_len}"
    unit = EPS[found.case.dtype]
    most = LARGEST_BASELINE[VARIANTS[found.variant].replica_of is not None] * unit
    for name, allowance in ALLOWED.items():
        one: Agreement | None = getattr(found.error, name)
        if one is None:
            continue
        allowed = max(allowance * one.baseline_relative_rms, unit)
        if one.relative_rms > allowed:
            told = f"is {one.relative_rms:g}, above the {allowed:g} allowed"
            yield f"error.{name}.relative_rms: {told}"
        if one.baseline_relative_rms > most:
            yield f"error.{name}.baseline_relative_rms: is more than {most:g}"
