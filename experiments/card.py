"""The cards that a case is measured on, as they are found then: which they are, clocks and limits.

Cards of one kind differ, and so does one card from day to day: a record names its own. All of them
are asked for by one call of `nvidia-smi`, some 30 ms, before the case and beside no sample.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from experiments.cards import listed_instances, nvidia_smi

# Of a record, as `nvidia-smi --help-query-gpu` calls them; the first three say which card it is.
_FIELDS = {
    "index": "index",
    "uuid": "uuid",
    "bus_id": "pci.bus_id",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "max_sm_mhz": "clocks.max.sm",
    "max_memory_mhz": "clocks.max.mem",
    "application_sm_mhz": "clocks.applications.graphics",
    "application_memory_mhz": "clocks.applications.memory",
    "power_limit_w": "power.limit",
    "ecc": "ecc.mode.current",
    "mig": "mig.mode.current",
}
_IS_ON = {"Enabled": True, "Disabled": False}
_WHOLE = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OLD_INSTANCE = re.compile(r"MIG-(GPU-[0-9a-f-]{36})/\d+/\d+")


def held(device: str, count: int) -> list[dict] | None:
    """The record's `machine.cards`: the first `count` of those that this process is shown.

    device: as held: "cpu", of which there are none (None), or "cuda:INDEX", by which a card is
    known where CUDA_VISIBLE_DEVICES is not set. None too where it is not told which cards they are.
    """
    if device == "cpu":
        return None
    listed = _listed()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        first = device.partition(":")[2]
        at = next((place for place, one in enumerate(listed) if str(one["index"]) == first), 0)
        return listed[at : at + count] or None
    named = [part.strip() for part in visible.split(",") if part.strip()][:count]
    found = [_named(name, listed) for name in named]
    return None if None in found or not found else found


def identity(cards: Sequence[dict] | None) -> str:
    """What tells the cards of a record from others of their kind; "" where it names none."""
    return "+".join(sorted(one["instance"] or one["uuid"] for one in cards or ()))


def _named(name: str, listed: list[dict]) -> dict | None:
    """The card that an entry of CUDA_VISIBLE_DEVICES means: an index, a UUID or how it begins."""
    parent = _parent_of(name) if name.startswith("MIG-") else name
    if parent is None:
        return None
    for one in listed:
        if str(one["index"]) == parent or (one["uuid"] or "").startswith(parent):
            return one | {"instance": name if name.startswith("MIG-") else None}
    if _WHOLE.fullmatch(name):
        # The driver tells nothing, and the lease which card it is.
        return dict.fromkeys(("instance", *_FIELDS)) | {"uuid": name}
    return None


def _listed() -> list[dict]:
    """All cards of the machine, by one call."""
    text = ""
    # A driver that tells nothing takes no measurement away.
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        fields = f"--query-gpu={','.join(_FIELDS.values())}"
        text = nvidia_smi(fields, "--format=csv,noheader,nounits")
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    return [_read(dict(zip(_FIELDS, row, strict=True))) for row in rows if len(row) == len(_FIELDS)]


def _read(told: dict[str, str]) -> dict:
    """A card's fields as a record has them; None for what the driver does not tell."""
    found = {key: told[key] for key in ("uuid", "bus_id")}
    found["bus_id"] = found["bus_id"].upper() if ":" in found["bus_id"] else None
    for key in ("index", *(key for key in _FIELDS if key.endswith("_mhz"))):
        found[key] = int(told[key]) if told[key].isdigit() else None
    found["power_limit_w"] = None
    with suppress(ValueError):
        found["power_limit_w"] = float(told["power_limit_w"])
    found |= {key: _IS_ON.get(told[key]) for key in ("ecc", "mig")}
    return {"instance": None} | {key: found[key] for key in _FIELDS}


def _parent_of(instance: str) -> str | None:
    """The UUID of the card that a MIG instance is a part of."""
    old = _OLD_INSTANCE.match(instance)
    if old:
        return old[1]
    for name, parent in _parents().items():
        if name.startswith(instance):
            return parent
    return None


@cache
def _parents() -> dict[str, str]:
    """By the UUID of each MIG instance its card's; they are the same for as long as it is held."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        return {uuid: card for card, _, uuid in listed_instances()}
    return {}
