"""Step 1: what is here, and what it does at best."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata

_CLOCKS = (
    "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,"
    "clocks_event_reasons.active"
)
# Beside the ceilings of these, a campaign on a CPU needs one alone.
_DTYPES = {"cuda": ("float16", "bfloat16", "float32"), "cpu": ("float32",)}
PACKAGES = ("numpy", "torch", "triton", "scipy", "pytest", "flash-attn", "flash-attn-4")


def packages() -> dict[str, str | None]:
    """Versions of what is installed; None for what is not."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_facts(device: str) -> dict:
    """The device as found, in a process of its own: clocks before and after, ceilings by dtype.

    Rates in FLOP/s and bytes/s, as `experiments.ceilings` measures them.
    """
    import torch

    from experiments import ceilings, measure

    before = clocks() if device == "cuda" else None
    measure.prepare(device)
    found = {dtype: ceilings.measure(dtype, device) for dtype in _DTYPES[device]}
    facts = {"ceilings": found}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "clocks_before": before,
            "clocks_after": clocks(),
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "capability": list(torch.cuda.get_device_capability(0)),
        }
    return facts


def clocks() -> dict[str, str] | None:
    """Clocks, power and temperature by the driver; None where it reports none."""
    try:
        text = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader"],
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    first = text.splitlines()[0] if text else ""
    return dict(zip(_CLOCKS.split(","), (part.strip() for part in first.split(",")), strict=False))
