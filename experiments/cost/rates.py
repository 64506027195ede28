"""The expected rates of `rates.yaml`: which device, which family a variant belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

from experiments.plain_yaml import loads

PATH = Path(__file__).with_name("rates.yaml")


@dataclass(frozen=True)
class Family:
    """Systems that run alike; the fields are explained in the file."""

    name: str
    variants: list[str]
    gflops: dict[str, float]
    causal: float = 1.0
    backward: float = 1.0
    wide: float = 1.0
    bytes_per_pair: float = 0.0
    held_per_pair: float = 0.0
    held_backward: float = 0.0
    bytes_per_number: float = 8.0
    call_ms: float = 0.0
    compile_s: float = 0.0
    again_s: float = 0.0


@dataclass(frozen=True)
class Device:
    """What a device is expected to do; the fields are explained in the file."""

    kind: str
    names: list[str]
    memory_gib: float
    copy_gb: float
    matmul_gflops: dict[str, float]
    process_s: float
    backward_s: float
    group_s: float
    warm_ups: int
    flush_ms: float
    ceilings_s: float
    scores_per_s: float
    normals_per_s: float
    generated_per_s: float
    narrow: float
    unsupported: list[str]
    families: dict[str, Family] = field(hash=False)

    def family(self, variant: str) -> Family | None:
        """The family of a variant; None where the device is not expected to run it."""
        return self.families.get(variant)


def device(kind: str, name: str = "") -> Device:
    """The rates for a device called `name`; the reference device of its kind where none fits."""
    of_kind = [one for one in _devices() if one.kind == kind]
    if not of_kind:
        known = ", ".join(dict.fromkeys(one.kind for one in _devices()))
        raise ValueError(f"device_kind={kind!r}: expected one of {known}")
    fitting = [one for one in of_kind if any(part in name for part in one.names)]
    return (fitting or of_kind)[0]


@cache
def _devices() -> tuple[Device, ...]:
    return tuple(_device(entry) for entry in loads(PATH.read_text(encoding="utf-8"))["devices"])


def _device(entry: dict) -> Device:
    entry = dict(entry)
    families = {}
    for name, values in entry.pop("families").items():
        family = Family(name, **values)
        families |= dict.fromkeys(family.variants, family)
    unknown = set(entry) - {f.name for f in fields(Device)}
    if unknown:
        raise ValueError(f"{PATH.name}: unknown key {min(unknown)!r}")
    return Device(**entry, families=families)
