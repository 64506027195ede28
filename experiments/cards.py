"""The cards that a process may use: NVIDIA's, the instances of a card that MIG divides, stand-ins.

A stand-in is a card by lease only: what is measured on it runs on the processor. With these a
machine without cards rehearses how many are shared.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata


class DeviceError(ValueError):
    """A device was asked for that is not here."""


@dataclass(frozen=True)
class Gpu:
    """A card, or an instance of one; memory in bytes.

    index: as nvidia-smi counts them; "0:1" is the second instance of the first card.
    """

    index: str
    uuid: str
    name: str
    driver: str
    memory_bytes: int
    # The UUID of the card that this is an instance of.
    divided: str = ""


# In the environment: how many stand-ins there are.
STAND_INS = "ATTENTION_STAND_INS"
STAND_IN = "stand-in card"
_MOST_STAND_INS = 64
# That nvidia-smi may take.
_SECONDS = 30

_CARD = re.compile(r"GPU \d+: .*\(UUID: (?P<uuid>[^)]+)\)")
_INSTANCE = re.compile(r" +MIG (?P<profile>\S+) .*\(UUID: (?P<uuid>[^)]+)\)")
_GIGABYTES = re.compile(r"\.(\d+)gb")


@cache
def gpus() -> tuple[Gpu, ...]:
    """The CUDA devices that this process may use with the installed PyTorch, in CUDA's order.

    DeviceError where CUDA_VISIBLE_DEVICES names none of those that are here.
    """
    try:
        if metadata.version("torch").endswith("+cpu"):
            return ()
        query = "--query-gpu=index,uuid,name,driver_version,memory.total"
        listed = nvidia_smi(query, "--format=csv,noheader,nounits")
        cards = [_card(line) for line in listed.splitlines()]
    except (FileNotFoundError, subprocess.SubprocessError, metadata.PackageNotFoundError):
        return ()
    instances = {}
    with suppress(subprocess.SubprocessError):
        instances = _instances({card.uuid: card for card in cards})
    return _visible([one for card in cards for one in instances.get(card.uuid, [card])])


@cache
def stand_ins() -> tuple[Gpu, ...]:
    """The stand-ins that this process may use; DeviceError where their number is none."""
    text = os.environ.get(STAND_INS)
    if text is None:
        return ()
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_STAND_INS:
        raise DeviceError(f"{STAND_INS}={text}: expected an integer from 1 to {_MOST_STAND_INS}")
    # Those of a cluster's nodes are others, even where one host plays several nodes.
    node = os.environ.get("SLURMD_NODENAME")
    of_node = f"stand-in-{node}" if node else "stand-in"
    names = (str(number) for number in range(int(text)))
    return _visible([Gpu(x, f"{of_node}-{x}", STAND_IN, "none", 0) for x in names])


# How a device is called: one of these, or one of them and ":INDEX".
_POOLS = {"cuda": gpus, "stand-in": stand_ins}


def pool(device: str) -> tuple[Gpu, ...]:
    """The cards that "cuda", "cuda:INDEX", "stand-in" or "stand-in:INDEX" may mean; "cpu": none."""
    found = _POOLS.get(device.partition(":")[0])
    return found() if found else ()


def name_of(device: str, card: Gpu) -> str:
    """What `card`, of the pool of `device`, is called."""
    return f"{device.partition(':')[0]}:{card.index}"


def nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints; OSError where it is not there, SubprocessError where it fails."""
    command = ["nvidia-smi", *arguments]
    limits = {"encoding": "utf-8", "timeout": _SECONDS}
    return subprocess.run(command, capture_output=True, check=True, **limits).stdout


def listed_instances() -> Iterator[tuple[str, str, str]]:
    """The UUID of the card, profile and UUID of each MIG instance; raises as `nvidia_smi`."""
    card = ""
    for line in nvidia_smi("-L").splitlines():
        if match := _CARD.match(line):
            card = match["uuid"]
        elif match := _INSTANCE.match(line):
            yield card, match["profile"], match["uuid"]


def _card(line: str) -> Gpu:
    index, uuid, name, driver, mib = (part.strip() for part in line.split(","))
    # Cards that share the host's memory report none of their own.
    return Gpu(index, uuid, name, driver, int(mib) * 2**20 if mib.isdigit() else 0)


def _instances(cards: dict[str, Gpu]) -> dict[str, list[Gpu]]:
    """The MIG instances of `cards`, which are by UUID, by the UUID of the card that has them."""
    found: dict[str, list[Gpu]] = {}
    for uuid, profile, instance in listed_instances():
        if card := cards.get(uuid):
            own = found.setdefault(uuid, [])
            size = _GIGABYTES.search(profile)
            memory = int(size[1]) * 2**30 if size else card.memory_bytes
            name = f"{card.name} MIG {profile}"
            index = f"{card.index}:{len(own)}"
            own.append(Gpu(index, instance, name, card.driver, memory, card.uuid))
    return found


def _visible(here: list[Gpu]) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order, which ends at a name of none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(here)
    found: list[Gpu] = []
    for part in (part.strip() for part in visible.split(",")):
        named = [gpu for gpu in here if _is_named(gpu, part)]
        if not named or named[0] in found:
            break
        found.append(named[0])
    if visible.strip() not in ("", "-1", "NoDevFiles") and here and not found:
        raise DeviceError(f"CUDA_VISIBLE_DEVICES={visible}: is none of the cards that are here")
    return tuple(found)


def _is_named(gpu: Gpu, part: str) -> bool:
    # A UUID may be cut short; a card that MIG divides is its first instance.
    return bool(part) and (
        part in (gpu.index, gpu.index.partition(":")[0])
        or (not part.isdecimal() and (gpu.uuid.startswith(part) or gpu.divided.startswith(part)))
    )
