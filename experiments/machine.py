"""What machine this is: found without torch, so that planning stays fast."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import resource
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from experiments.cards import STAND_IN, DeviceError, name_of, pool


@dataclass(frozen=True)
class Host:
    """What tells the hosts of one kind of machine apart, and one start of a host from the next.

    A cloud calls several generations of a processor by one name. family, model, stepping: of the
    CPU. caches: bytes by level. boot: of a hash of the kernel's boot id. None where unknown.
    """

    family: int | None
    model: int | None
    stepping: int | None
    caches: dict[str, int]
    boot: str | None

    @property
    def id(self) -> str:
        """8 hex digits over all of it."""
        return _digest(repr(asdict(self)))

    def to_json(self) -> dict:
        return {"id": self.id, **asdict(self)}


@dataclass(frozen=True)
class Machine:
    """The device that is measured and what surrounds it; sizes in bytes."""

    host: Host
    device: str
    device_kind: str
    driver: str | None
    cpu: str
    cores: int
    memory_bytes: int
    device_memory_bytes: int
    system: str

    @property
    def id(self) -> str:
        """Stable, readable, free of host names: `nvidia-h200-3f9a1c`."""
        key: tuple = (self.device, self.cpu)
        if self.device_kind == "cpu":
            # Beside a card they say what a job was given of its node, which varies.
            key += (self.cores, round(self.memory_bytes / 2**30))
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:6]
        name = re.sub(r"\((r|tm)\)", "", self.device.lower())
        slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
        cores = f"-{self.cores}core" if self.device_kind == "cpu" else ""
        return f"{slug}{cores}-{digest}"

    @property
    def torch_device(self) -> str:
        """What PyTorch calls it: "cpu" or "cuda"."""
        return "cpu" if self.device_kind == "cpu" else "cuda"

    def to_json(self) -> dict:
        return {"id": self.id, **asdict(self), "host": self.host.to_json()}


def choose_device(asked: str | None) -> str:
    """The device to measure on: what was asked for, or, for None, a GPU if there is one.

    asked: "cpu", "cuda", "cuda:INDEX", "stand-in", "stand-in:INDEX" or None; DeviceError where it
    is not here.

    Without an index the lock takes whichever is free.
    """
    if asked is None:
        return "cuda" if pool("cuda") else "cpu"
    kinds = ("cuda", "stand-in")
    here = ["cpu", *(name_of(kind, card) for kind in kinds for card in pool(kind))]
    if asked in here or (asked in kinds and pool(asked)):
        return asked
    raise DeviceError(f"--device {asked}: not here; there is {', '.join(here)}")


def describe(device: str) -> Machine:
    """The machine as seen from `device`, which is here: see `choose_device`."""
    memory = _memory_bytes()
    cpu, cores = _cpu_name(), len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}"
    around = (cpu, cores, memory)
    if device == "cpu":
        return Machine(host(), cpu, "cpu", None, *around, memory, system)
    card = next(c for c in pool(device) if device in (name_of(device, c), device.split(":")[0]))
    if card.name == STAND_IN:
        return Machine(host(), STAND_IN, "cpu", None, *around, memory, system)
    return Machine(host(), card.name, "cuda", card.driver, *around, card.memory_bytes, system)


@cache
def host() -> Host:
    """The host that this runs on, as far as Linux says."""
    numbers = []
    for key in ("cpu family", "model", "stepping"):
        text = _cpuinfo(key)
        numbers.append(int(text) if text and text.isdigit() else None)
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return Host(*numbers, _caches(), _digest(boot))
    return Host(*numbers, _caches(), None)


def _caches() -> dict[str, int]:
    """Bytes of the first core's caches, by level."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with suppress(OSError, ValueError):
            level, kind, size = (
                (folder / n).read_text(encoding="utf-8").strip() for n in ("level", "type", "size")
            )
            letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
            found[f"L{level}{letter}"] = int(size.removesuffix("K")) * 1024
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def address_space() -> tuple[int, int | None]:
    """Bytes of address space that this process has, and may have (ulimit -v); None for any."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    return pages * resource.getpagesize(), None if most == resource.RLIM_INFINITY else most


def memory_available() -> int:
    """Bytes that can be taken without swapping."""
    return _meminfo("MemAvailable")


def _memory_bytes() -> int:
    return _meminfo("MemTotal")


def _meminfo(key: str) -> int:
    with open("/proc/meminfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {key}")


def _cpu_name() -> str:
    return _cpuinfo("model name") or _cpuinfo("Model") or platform.machine()


def _cpuinfo(key: str) -> str | None:
    """The first value of a key of /proc/cpuinfo."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None
