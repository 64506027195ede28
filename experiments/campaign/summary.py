"""`summary.md`: what a person wants to see of a campaign, made anew with each archive."""

from __future__ import annotations

import statistics
from pathlib import Path

from experiments import grid, rounds
from experiments.campaign.folder import Folder
from experiments.case import Case
from experiments.procedures import case_from
from experiments.record import parse
from experiments.runner import label

# What times are set beside, by the fields that two cases must share.
_BASELINE = "dense"
_SHARED = (
    *("batch", "seq_len", "heads", "kv_heads", "head_dim", "dtype", "is_causal", "pass_"),
    "recipe",
)


def write(folder: Folder) -> None:
    """Write it from what lies in the folder."""
    folder.write_text("summary.md", text(folder))


def text(folder: Folder) -> str:
    """The summary as Markdown."""
    manifest = folder.manifest
    kind = "Rehearsal" if manifest["rehearsal"] else "Campaign"
    parts = [f"# {kind} on {manifest['machine']}, {manifest['started_at']}\n"]
    if manifest["rehearsal"]:
        parts.append("Tiny shapes and interpreted kernels: the times below say nothing.\n")
    parts += [_looked(folder.found("look")), _trusted(folder.found("trust"))]
    parts += [_tuned(folder.found("tune")), records_table(records(folder.records))]
    return "\n".join(part for part in parts if part)


def records(root: Path) -> list[dict]:
    """Every record under `root`."""
    return [parse(path) for path in rounds.record_files(root)]


def records_table(found: list[dict]) -> str:
    """One line per case: time, useful rate, speed-up over dense attention in the same setting.

    The time is the median of its rounds' medians, the error that of its first round.
    """
    if not found:
        return "No case is measured yet.\n"
    of_case: dict[Case, list[dict]] = {}
    for one in found:
        case = case_from({"variant": one["variant"], **one["case"]})
        of_case.setdefault(case, []).append(one)
    times = {case: _ms_of_rounds(records) for case, records in of_case.items()}
    dense = {_setting(case): ms for case, ms in times.items() if case.variant == _BASELINE}
    lines = [
        f"## {len(found)} records of {len(of_case)} cases\n",
        "| experiments | case | ms | rounds | useful TFLOP/s | over dense | error over dense's |",
        "|---|---|---|---|---|---|---|",
    ]
    experiments = {case: ", ".join(grid.experiments_of(case)) for case in of_case}
    for case in sorted(of_case, key=experiments.get):
        one, ms = of_case[case][0], times[case]
        if ms is None:
            cells = [one["status"], "", "", "", (one["reason"] or "")[:80].replace("|", "/")]
        else:
            beside = dense.get(_setting(case))
            error = one["error"]["output"]
            cells = [
                f"{ms:.4g}",
                str(len(of_case[case])),
                f"{one['useful_flops'] / ms / 1e9:.3g}",
                f"{beside / ms:.2f}" if beside else "",
                f"{error['relative_rms'] / max(error['baseline_relative_rms'], 1e-30):.2f}",
            ]
        lines.append(" | ".join(["| " + experiments[case], label(case), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _ms_of_rounds(found: list[dict]) -> float | None:
    """The median of the medians of a case's records; None where none has samples."""
    medians = []
    for one in found:
        samples = [ms for replicate in one["replicates"] for ms in replicate.get("samples_ms", ())]
        medians += [statistics.median(samples)] if samples else []
    return statistics.median(medians) if medians else None


def _setting(case: Case) -> tuple:
    return tuple(getattr(case, key, None) for key in _SHARED)


def _looked(found: dict | None) -> str:
    if not found:
        return ""
    versions = ", ".join(f"{k} {v}" for k, v in found["packages"].items() if v)
    lines = [f"{found['machine']['device']}; {versions}.\n"]
    lines += ["| type | matrix product, TFLOP/s | copy, GB/s |", "|---|---|---|"]
    for dtype, ceiling in found["facts"]["ceilings"].items():
        rates = ceiling["matmul_flops_per_s"] / 1e12, ceiling["copy_bytes_per_s"] / 1e9
        lines.append(f"| {dtype} | {rates[0]:.4g} | {rates[1]:.4g} |")
    return "\n".join(lines) + "\n"


def _trusted(found: dict | None) -> str:
    if not found:
        return ""
    if found["reason"]:
        return f"Kernels were not checked: {found['reason']}.\n"
    from experiments.campaign import trust

    marks = trust.of_json(found["marks"])
    right = sum(mark.status == "ok" for mark in marks)
    lines = [f"## Kernels: {right} of {len(marks)} checks passed\n"]
    lines += [f"- {trust.str_of(mark)}" for mark in marks if mark.is_bad]
    left = sum(mark.status == "not run" for mark in marks)
    lines += [f"- {left} checks were not run: the time was up"] if left else []
    return "\n".join(lines) + "\n"


def _tuned(found: dict | None) -> str:
    if not found or not found["done"]:
        return ""
    lines = ["## Tiles\n", "| entry | before, ms | after, ms | note |", "|---|---|---|---|"]
    for one in found["done"]:
        times = ["" if x is None else f"{x:.4g}" for x in (one["ms_before"], one["ms_after"])]
        lines.append(" | ".join(["| " + one["entry"], *times, one["note"]]) + " |")
    return "\n".join(lines) + "\n"
