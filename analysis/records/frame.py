"""Records to one tidy frame, all machines: the only door from `results/` to the analysis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.records import rank_columns, replica_columns, systems
from analysis.statistics.intervals import Interval, median_interval
from experiments.case import COLUMNS
from experiments.record import RecordError
from experiments.schema import Record
from experiments.schema import load as load_record

DEFAULT_ROOTS = ("results/published", "results/local")


class RecordsError(ValueError):
    """Records or a notebook parameter that cannot be used: names it and what was expected."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a stack: the reader needs the message alone.
        return [f"{type(self).__name__}: {self}"]


def repository(start: Path | None = None) -> Path:
    """The repository root: the nearest folder upward of `start` (default: here) with `Snakefile`.

    Raises RecordsError if there is none.
    """
    start = Path.cwd() if start is None else Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "Snakefile").is_file():
            return folder
    raise RecordsError(f"{start}: not inside the repository (no Snakefile here or above)")


def load(*roots) -> pd.DataFrame:
    """One row per record file in `roots` (folders, searched down, or files).

    Without `roots`: those of `DEFAULT_ROOTS` that exist in this repository. Where one
    machine has a case both published and local, the local record is used. Times are ms,
    memory bytes, lengths tokens; numbers of a record that is not ok are NaN. Columns:

    - the case's fields, `system` (see `analysis.records.systems`), `path` from the repository root,
      `origin`, machine and software
    - `median_ms`, `low_ms`, `high_ms`: 95 % order-statistic interval over all samples; NaN bounds
      where all are of one process, as the spread between processes is then unknown
    - errors, `rows_checked`, and the measured ceilings: FLOP/s, and bytes read and written per
      second; NaN in old records
    - `source_ms`: median time of a streamed pass in its source, NaN of others
    - see `analysis.records.rank_columns` and `analysis.records.replica_columns`

    A case without block mask has NaN as sparsity and block size; one without ranks has NaN as
    world size and None as `simulated`.

    Raises RecordsError naming the folder (missing, without records) or the bad file and field.
    """
    paths = _record_files(roots)
    rows = []
    for path in paths:
        try:
            rows.append(_row(load_record(path), path))
        except RecordError as error:
            raise RecordsError(str(error)) from None
    frame = pd.DataFrame(rows)
    frame = frame.sort_values(["origin", "path"], kind="stable")
    frame = frame.drop_duplicates(["machine", "experiment", *COLUMNS], keep="first")
    order = ["experiment", "machine", "dtype", "pass", "batch", "seq_len", "system", "path"]
    frame = frame.sort_values(order, kind="stable").reset_index(drop=True)
    # Thousands of rows and selections are taken of it: text as objects, and a copy, put columns
    # of one type in one array, of which each takes a slice.
    texts = {name: object for name in frame.columns if frame[name].dtype == "str"}
    return frame.astype(texts).copy()


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
    """The median time (ms) of a record, with its 95 % interval; NaN without a time."""
    return Interval(row["median_ms"], row["low_ms"], row["high_ms"], 0.95)


def reporting_machine(frame: pd.DataFrame, machine: str = "auto") -> str:
    """The id of the machine that the prose reports.

    "auto": the local machine if it has records, else a published CUDA machine, else a
    published CPU one; among several the one with most timed records, then the first by id.
    Raises RecordsError for an id without records.
    """
    ids = sorted(frame["machine"].unique())
    if machine != "auto":
        if machine not in ids:
            raise RecordsError(
                f"machine {machine!r}: has no record, expected 'auto' or one of {', '.join(ids)}"
            )
        return machine
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
    """All machine ids of `frame`: `first`, then CUDA ones, then those with most timed, by id."""
    kinds = frame.groupby("machine")["device_kind"].first()
    timed = frame.groupby("machine")["median_ms"].count()
    return sorted(kinds.index, key=lambda m: (m != first, kinds[m] != "cuda", -timed[m], m))


def _record_files(roots) -> list[Path]:
    if not roots:
        base = repository()
        roots = [base / root for root in DEFAULT_ROOTS if (base / root).is_dir()]
        if not roots:
            raise RecordsError(f"{base}: has none of {', '.join(DEFAULT_ROOTS)}")
    files: list[Path] = []
    for root in map(Path, roots):
        if root.is_dir():
            # A name that starts with a dot is another process's half-written file.
            found = sorted(p for p in root.rglob("*.json") if not p.name.startswith("."))
        elif root.is_file():
            found = [root]
        else:
            raise RecordsError(f"{root}: no such records folder or file")
        files += found
    if not files:
        named = ", ".join(str(root) for root in roots)
        raise RecordsError(f"{named}: no record (*.json) in there; run the experiments first")
    return list(dict.fromkeys(files))


def _row(record: Record, path: Path) -> dict:
    case = record.case
    ok = record.status == "ok"
    samples = [list(r.samples_ms) for r in record.replicates] if ok else []
    time = median_interval([s for one in samples for s in one]) if ok else None
    several = ok and len(samples) > 1
    in_source = [ms for r in record.replicates for ms in r.source_ms or ()]
    memory = [r.peak_memory_bytes for r in record.replicates if r.peak_memory_bytes is not None]
    output = record.error.output if ok else None
    gradient = record.error.gradient if ok else None
    ceilings, nan = record.ceilings, math.nan
    return {
        "experiment": record.experiment,
        "tier": record.tier,
        "system": systems.key(record.variant, case.sparsity, case.world_size, case.simulated),
        **record.to_case().cells(),
        "status": record.status,
        "reason": record.reason,
        "backend": record.backend,
        "realised_density": record.realised_density if ok else nan,
        "useful_flops": record.useful_flops if ok else nan,
        "matmul_flops_per_s": ceilings.matmul_flops_per_s if ceilings else nan,
        "copy_bytes_per_s": ceilings.copy_bytes_per_s if ceilings else nan,
        "samples": samples,
        "median_ms": time.value if ok else nan,
        "low_ms": time.low if several else nan,
        "high_ms": time.high if several else nan,
        "source_ms": _median(in_source) if ok else nan,
        "peak_memory_bytes": float(max(memory)) if ok and memory else nan,
        **rank_columns.columns(record),
        **replica_columns.columns(record),
        "rows_checked": record.error.rows_checked if ok else nan,
        "relative_rms": output.relative_rms if output else nan,
        "baseline_relative_rms": output.baseline_relative_rms if output else nan,
        "gradient_relative_rms": gradient.relative_rms if gradient else nan,
        "gradient_baseline_relative_rms": gradient.baseline_relative_rms if gradient else nan,
        "machine": record.machine.id,
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
        "path": _from_root(path),
        "started_at": record.started_at,
        "wall_s": record.wall_s,
        "command": record.command,
        "origin": _origin(path),
    }


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan


def _from_root(path: Path) -> str:
    resolved = path.resolve()
    for folder in resolved.parents:
        if (folder / "Snakefile").is_file():
            return resolved.relative_to(folder).as_posix()
    return path.as_posix()


def _origin(path: Path) -> str:
    """ "published" for `.../published/<machine>/<experiment>/<case>.json`, else "local"."""
    parts = path.resolve().parts
    return "published" if len(parts) > 3 and parts[-4] == "published" else "local"
