"""Records to one tidy frame, all machines: the only door from `results/` to the analysis."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import pandas as pd

from analysis.records import files, rank_columns, replica_columns, systems, training_columns
from analysis.records.files import DEFAULT_ROOTS as DEFAULT_ROOTS
from analysis.records.files import NOBODY, UNVOUCHED, File, RecordsError
from analysis.records.files import repository as repository
from analysis.records.of_frame import of_frame
from analysis.statistics import intervals
from analysis.statistics.intervals import Interval
from analysis.statistics.rounds import RoundSamples, log_medians
from analysis.statistics.rounds import occasions as occasions_of
from analysis.statistics.spread import Spread, estimate
from experiments import gate, grid, rounds
from experiments.case import Case

# The files that `analysis.warm` has read for the forks of its process, and their frame.
kept: tuple[list[File], pd.DataFrame] | None = None


def load(*roots) -> pd.DataFrame:
    """One row per machine, experiment and case, of all rounds whose records count.

    See `analysis.records.files`, of `roots` too. A case is a row of every experiment whose grid
    has it in some tier; one of no grid has none. It is "ok" if it is in any round, and then its
    numbers are those of these rounds; else its status is that of the newest round. Times are ms,
    memory bytes, lengths tokens; numbers of a case that is not ok are NaN. Columns:

    - the case's fields, `system` (see `analysis.records.systems`), `origin`, machine (in words as
      `machine_name`), whether somebody vouches for the records (`vouched`), and software;
      where rounds differ, errors and software are those of the newest that is of the row's status
    - `path`: of that record, from the repository root; `paths`, `commands`: of all that count
    - `samples`: a tuple of `RoundSamples`; `rounds`, `occasions`, `hosts`, `cards`: of
      how many; `nodes`: over which the ranks were spread in each of them
    - `began`: (round, start of the case) of all that count; `gauges`: these and the drift gauge
      before and after it
    - `median_ms`, `low_ms`, `high_ms`: see `analysis.statistics.intervals`; NaN bounds of one round
    - `spread`: what the machine's cases say of its rounds (`analysis.statistics.spread`)
    - errors, `rows_checked`, and the measured ceilings: FLOP/s, and bytes read and written per
      second; NaN in old records
    - `source_ms`: time of a streamed pass in its source, NaN of others: median over processes
    - see `analysis.records.rank_columns`, `replica_columns` and `training_columns` there

    A case without block mask has NaN as sparsity and block size; one without ranks has NaN as
    world size and None as `simulated`.

    Raises RecordsError as `files.read` and `files.counting` do.
    """
    return of_files(files.read(*roots))


@gate.uncollected()
def of_files(found: Iterable[File]) -> pd.DataFrame:
    """`load` of records that were read before."""
    found = list(found)
    # Equal where they are the same objects, at which a comparison of lists looks first.
    if kept is not None and found == kept[0]:
        return kept[1]
    of_cases = files.counting(found)
    occasions = _occasions(one for own in of_cases.values() for one in own)
    samples = {key: _samples(own, occasions) for key, own in of_cases.items()}
    # Steps of trainings are timed for a second and not again beside a gauge that is off: what they
    # vary by says nothing of passes of attention.
    kinds: dict[tuple, dict[Case, tuple[RoundSamples, ...]]] = {}
    for (machine, case), own in samples.items():
        kinds.setdefault((machine, type(case)), {})[case] = own
    spreads = {kind: _spread(own) for kind, own in kinds.items()}
    rows = []
    for (machine, case), own in of_cases.items():
        row = _row(case, own, samples[machine, case], spreads[machine, type(case)])
        rows += [{"experiment": one} | row for one in grid.experiments_of(case)]
    if not rows:
        raise RecordsError("no record is of a case that a grid has")
    frame = _named(pd.DataFrame(rows))
    order = ["experiment", "machine", "dtype", "pass", "batch", "seq_len", "system", "path"]
    frame = frame.sort_values(order, kind="stable").reset_index(drop=True)
    # Thousands of rows and selections are taken of it: text as objects, and a copy, put columns
    # of one type in one array, of which each takes a slice.
    texts = {name: object for name in frame.columns if frame[name].dtype == "str"}
    return frame.astype(texts).copy()


def vouched(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that may judge and speak. Raises RecordsError if nobody vouches for any."""
    rows = frame[frame["vouched"].astype(bool)]
    if rows.empty:
        raise RecordsError(NOBODY)
    return rows if len(rows) < len(frame) else frame


@of_frame
def of_experiment(frame: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """The rows of one experiment. Raises RecordsError if it has no record."""
    rows = frame[frame["experiment"] == experiment]
    if rows.empty:
        raise RecordsError(
            f"no record of experiment {experiment!r} among {len(frame)} records "
            f"(has: {', '.join(sorted(frame['experiment'].unique()))})"
        )
    return rows


def time_interval(row: Mapping) -> Interval:
    """The time (ms) of a row with its 95 % interval; NaN without a time."""
    known = 0.0 if math.isnan(row["low_ms"]) else 0.95
    return Interval(row["median_ms"], row["low_ms"], row["high_ms"], known)


def reporting_machine(frame: pd.DataFrame, machine: str = "auto") -> str:
    """The id of the machine that the prose reports.

    "auto": the local machine if it has records, else a published CUDA machine, else a
    published CPU one; among several the one with most timed records, then the first by id.
    What nobody vouches for does not speak. Raises RecordsError for an id without records.
    """
    ids = sorted(frame["machine"].unique())
    if machine != "auto":
        if machine not in ids:
            raise RecordsError(
                f"machine {machine!r}: has no record, expected 'auto' or one of {', '.join(ids)}"
            )
        return machine
    frame = vouched(frame)
    for mask in (
        frame["origin"] == "local",
        frame["device_kind"] == "cuda",
        frame["device_kind"] == "cpu",
    ):
        if mask.any():
            timed = frame[mask].groupby("machine")["median_ms"].count()
            return timed.sort_values(ascending=False, kind="stable").index[0]
    raise RecordsError("no record of any machine")


def machines(frame: pd.DataFrame, first: str) -> list[str]:
    """All machine ids of `frame`: `first`, then CUDA ones, then those with most timed, by id.

    Those that nobody vouches for come last.
    """
    kinds = frame.groupby("machine")["device_kind"].first()
    strangers = set(frame.loc[~frame["vouched"].astype(bool), "machine"])
    timed = frame.groupby("machine")["median_ms"].count()
    return sorted(
        kinds.index, key=lambda m: (m != first, m in strangers, kinds[m] != "cuda", -timed[m], m)
    )


def _occasions(found: Iterable[File]) -> dict[tuple[str, str, str], str]:
    """The occasion of each (machine, host, round), by when its cases were measured."""
    times: dict[tuple[str, str], dict[str, tuple[datetime, datetime]]] = {}
    for one in found:
        began = rounds.in_utc(one.record.started_at)
        ended = began + timedelta(seconds=one.record.wall_s)
        of_host = times.setdefault((one.machine, one.host), {})
        first, last = of_host.get(one.round, (began, ended))
        of_host[one.round] = min(first, began), max(last, ended)
    return {
        (*host, round_): occasion
        for host, own in times.items()
        for round_, occasion in occasions_of(own).items()
    }


def _samples(
    found: list[File], occasions: Mapping[tuple[str, str, str], str]
) -> tuple[RoundSamples, ...]:
    """Of each round in which the case is ok, and timed."""
    return tuple(
        RoundSamples(
            one.host,
            occasions[one.machine, one.host, one.round],
            one.round,
            tuple(tuple(r.samples_ms) for r in one.record.replicates),
            one.card,
        )
        for one in found
        if one.record.status == "ok" and any(r.samples_ms for r in one.record.replicates)
    )


def _spread(cases: Mapping[Case, tuple[RoundSamples, ...]]) -> Spread:
    """Of one machine's cases; the ratio of each is over its shape's dense one, or else first."""
    logs = {case: log_medians(samples) for case, samples in cases.items() if samples}
    bases: dict[tuple, Case] = {}
    for case in sorted(logs, key=lambda case: (case.variant != "dense", case.name)):
        bases.setdefault(rounds.shape_of(case), case)
    over = {case: bases[rounds.shape_of(case)] for case in logs}
    return estimate(
        (own, logs[over[case]] if over[case] != case else None) for case, own in logs.items()
    )


def _row(case: Case, found: list[File], samples: tuple[RoundSamples, ...], spread: Spread) -> dict:
    of_status = [one for one in found if one.record.status == "ok"] or found[-1:]
    newest = of_status[-1]
    # All rounds as if they were one, of several processes.
    replicates = [r for one in of_status for r in one.record.replicates]
    record = newest.record.model_copy(update={"replicates": replicates})
    ok = record.status == "ok"
    time = intervals.time(samples, spread) if samples else Interval.without_spread(math.nan)
    in_source = [_median(r.source_ms) for r in record.replicates if r.source_ms]
    memory = [r.peak_memory_bytes for r in record.replicates if r.peak_memory_bytes is not None]
    output = record.error.output if ok else None
    gradient = record.error.gradient if ok else None
    ceilings, nan = record.ceilings, math.nan
    return {
        "tier": record.tier,
        "system": systems.key(case.variant, case.sparsity, case.world_size, case.simulated),
        **case.cells(),
        "status": record.status,
        "reason": record.reason,
        "backend": record.backend,
        "realised_density": record.realised_density if ok else nan,
        "useful_flops": record.useful_flops if ok else nan,
        "matmul_flops_per_s": ceilings.matmul_flops_per_s if ceilings else nan,
        "copy_bytes_per_s": ceilings.copy_bytes_per_s if ceilings else nan,
        "samples": samples,
        "began": tuple((one.round, one.record.started_at) for one in found),
        "gauges": tuple(
            (one.round, one.record.started_at, one.record.gauges.model_dump())
            for one in found
            if one.record.gauges is not None
        ),
        "rounds": len(samples),
        "occasions": len({one.at[:2] for one in samples}),
        "hosts": len({one.host for one in samples}),
        "cards": len({(one.host, one.card) for one in samples}),
        "nodes": record.machine.nodes,
        "spread": spread,
        "median_ms": time.value,
        "low_ms": time.low,
        "high_ms": time.high,
        "source_ms": _median(in_source) if ok else nan,
        "peak_memory_bytes": float(max(memory)) if ok and memory else nan,
        **rank_columns.columns(record),
        **replica_columns.columns(record),
        **training_columns.columns(case, record),
        "rows_checked": record.error.rows_checked if ok else nan,
        "relative_rms": output.relative_rms if output else nan,
        "baseline_relative_rms": output.baseline_relative_rms if output else nan,
        "gradient_relative_rms": gradient.relative_rms if gradient else nan,
        "gradient_baseline_relative_rms": gradient.baseline_relative_rms if gradient else nan,
        "machine": newest.machine,
        "vouched": newest.is_vouched,
        "device": record.machine.device,
        "device_kind": record.machine.device_kind,
        "cpu": record.machine.cpu,
        "cores": record.machine.cores,
        "memory_bytes": record.machine.memory_bytes,
        "device_memory_bytes": record.machine.device_memory_bytes,
        "operating_system": record.machine.system,
        "torch": record.software.torch,
        "triton": record.software.triton,
        "python": record.software.python,
        "git_commit": record.software.git_commit,
        "code_digest": record.software.code_digest,
        "path": newest.path,
        "paths": tuple(one.path for one in found),
        "commands": tuple(one.record.command_line for one in found),
        "started_at": record.started_at,
        "command": record.command_line,
        "origin": newest.origin,
    }


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """With `machine_name`, what a person would call each; the id too where two have one name."""
    first = frame.drop_duplicates("machine").set_index("machine")
    names = {machine: _name(row) for machine, row in first.iterrows()}
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    names |= {m: f"{name} ({m})" for m, name in names.items() if name in shared}
    return frame.assign(machine_name=frame["machine"].map(names))


def _name(row: pd.Series) -> str:
    """The card, or the cores and the processor without what its maker adds to every name."""
    mark = "" if row["vouched"] else UNVOUCHED
    if row["device_kind"] == "cuda":
        return row["device"] + mark
    bare = re.sub(r"\((?:R|TM)\)|\b(?:\d+-Core|Processor|CPU)\b|@.*", "", row["cpu"])
    return f"{row['cores']}-core {' '.join(bare.split()) or 'CPU'}{mark}"


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan
