"""What differs between two sides beside their times: hardware, software, how they were measured.

Values are compared as they are shown, over the records that count of the cases that both have. What
a record does not say is neither the same nor different.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from analysis.records.files import File

UNKNOWN = None
NONE = "none"
# Of several values of one side so many are shown, those of most records first.
_MOST = 2


@dataclass(frozen=True)
class Difference:
    """What is called `name` on the two sides, in words.

    Of several values on one side, behind each the number of records that have it.
    """

    kind: str
    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Differences:
    """What differs, what is the same, and what a side does not record: names with their values."""

    differing: list[Difference]
    same: list[Difference]
    unknown: list[Difference]

    def of(self, kind: str) -> list[Difference]:
        """Those of "hardware", "software" or "measuring" that differ."""
        return [one for one in self.differing if one.kind == kind]


def between(a: Iterable[File], b: Iterable[File]) -> Differences:
    """What differs between the records of two sides."""
    a, b = list(a), list(b)
    found = Differences([], [], [])
    for kind, facts in FACTS.items():
        for name, tell in facts.items():
            told = [[tell(one) for one in side] for side in (a, b)]
            one = Difference(kind, name, *map(_in_words, told))
            if any(UNKNOWN in values for values in told):
                found.unknown.append(one)
            elif one.a == one.b:
                found.same.append(one)
            else:
                found.differing.append(one)
    return found


def _in_words(values: list[str | None]) -> str:
    counts = Counter("not recorded" if one is UNKNOWN else one for one in values)
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts, key=lambda one: (-counts[one], one))
    words = ", ".join(f"{one} ({counts[one]})" for one in ordered[:_MOST])
    return words + (f" and {len(ordered) - _MOST} more" if len(ordered) > _MOST else "")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _device(one: File) -> str:
    machine = one.record.machine
    return machine.device if machine.device_kind == "cuda" else "the CPU"


def _device_memory(one: File) -> str:
    machine = one.record.machine
    return _gib(machine.device_memory_bytes) if machine.device_kind == "cuda" else "the machine's"


def _of_host(tell: Callable) -> Callable[[File], str | None]:
    """A fact of the host, which old records do not have."""
    return lambda one: UNKNOWN if one.record.machine.host is None else tell(one.record.machine.host)


def _processor(host) -> str:
    return ", ".join("?" if n is None else str(n) for n in (host.family, host.model, host.stepping))


def _caches(host) -> str:
    words = (f"{level} {size // 1024:,} KiB" for level, size in sorted(host.caches.items()))
    return ", ".join(words) or NONE


def _commit(one: File) -> str | None:
    software = one.record.software
    if software.git_commit is None:
        return UNKNOWN
    return software.git_commit[:10] + (", with changes" if software.git_dirty else "")


def _software(name: str) -> Callable[[File], str]:
    return lambda one: getattr(one.record.software, name) or NONE


FACTS: dict[str, dict[str, Callable[[File], str | None]]] = {
    "hardware": {
        "device": _device,
        "device memory": _device_memory,
        "driver": lambda one: one.record.machine.driver or NONE,
        "processor": lambda one: one.record.machine.cpu,
        "CPU family, model, stepping": _of_host(_processor),
        "caches": _of_host(_caches),
        "cores": lambda one: str(one.record.machine.cores),
        "memory": lambda one: _gib(one.record.machine.memory_bytes),
        "system": lambda one: one.record.machine.system,
    },
    "software": {
        "python": _software("python"),
        "torch": _software("torch"),
        "CUDA": _software("cuda"),
        "triton": _software("triton"),
        "flash_attn": _software("flash_attn"),
        "numpy": _software("numpy"),
        "tile tables": lambda one: one.record.software.tile_tables or "the repository's",
        "git commit": _commit,
    },
    "measuring": {
        "start of the host": _of_host(lambda host: host.id),
        "limits of the tier": lambda one: one.record.tier,
    },
}
