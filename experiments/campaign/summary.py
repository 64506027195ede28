"""`summary.md`: what a person wants to see of a campaign, made anew with each archive."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from experiments import grid
from experiments.campaign.folder import Folder
from experiments.case import Case
from experiments.runner import label

# What times are set beside, by the fields that two cases must share.
_BASELINE = "dense"
_SHARED = ("batch", "seq_len", "heads", "kv_heads", "head_dim", "dtype", "is_causal", "pass")


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
    return [json.loads(path.read_text()) for path in sorted(root.rglob("*.json"))]


def records_table(found: list[dict]) -> str:
    """One line per record: time, useful rate, speed-up over dense attention in the same setting."""
    if not found:
        return "No case is measured yet.\n"
    dense = {_setting(one): median_ms(one) for one in found if one["variant"] == _BASELINE}
    lines = [
        f"## {len(found)} records\n",
        "| experiment | case | ms | processes | useful TFLOP/s | over dense | error over dense's |",
        "|---|---|---|---|---|---|---|",
    ]
    order = {name: number for number, name in enumerate(grid.names())}
    for one in sorted(found, key=lambda one: order[one["experiment"]]):
        case = Case.from_mapping({"variant": one["variant"], **one["case"]})
        ms = median_ms(one)
        if ms is None:
            cells = [one["status"], "", "", "", (one["reason"] or "")[:80].replace("|", "/")]
        else:
            beside = dense.get(_setting(one))
            error = one["error"]["output"]
            cells = [
                f"{ms:.4g}",
                str(len(one["replicates"])),
                f"{one['useful_flops'] / ms / 1e9:.3g}",
                f"{beside / ms:.2f}" if beside else "",
                f"{error['relative_rms'] / max(error['baseline_relative_rms'], 1e-30):.2f}",
            ]
        lines.append(" | ".join(["| " + one["experiment"], label(case), *cells]) + " |")
    return "\n".join(lines) + "\n"


def median_ms(one: dict) -> float | None:
    """Median of all samples of a record; None where it has none."""
    samples = [ms for replicate in one["replicates"] for ms in replicate.get("samples_ms", ())]
    return statistics.median(samples) if samples else None


def _setting(one: dict) -> tuple:
    return one["experiment"], *(one["case"][key] for key in _SHARED)


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
