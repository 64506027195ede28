"""The cases of a tier across all experiments, most valuable first: `value.yaml`, then the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments import grid as grids
from experiments.case import Case
from experiments.plain_yaml import PlainYamlError, loads

PATH = Path(__file__).with_name("value.yaml")
REST = "not listed: in the order of the grids, one of each experiment at a time"
# Lists in themselves: one value of a selector, not several.
_LISTS = ("segment_lengths", "dilation_rates")


class ValueFileError(ValueError):
    """The order cannot be used: names the file, the entry and the key."""


@dataclass(frozen=True)
class Selected:
    """A case, the first experiment that asks for it, why it comes where it does, its place from 0.

    task: how it is measured, for whichever experiments.
    """

    experiment: str
    task: grids.Task
    why: str
    rank: int

    @property
    def case(self) -> Case:
        return self.task.case


def ordered(tier: str = "gpu", path: Path = PATH) -> list[Selected]:
    """Every case of `tier` once, most valuable first.

    The file orders one tier; of another all are taken as not listed. ValueFileError where the
    file has a key, an experiment or a value that matches no case.
    """
    data = _read(path)
    cases = {name: grids.load(name).check_tier(tier).cases for name in grids.names()}
    # By case: the experiment that asks for it first, and why.
    chosen: dict[Case, tuple[str, str]] = {}
    last: dict[Case, tuple[str, str]] = {}
    if tier == data["tier"]:
        for part, found in (("first", chosen), ("last", last)):
            for number, entry in enumerate(data[part], start=1):
                where = f"{path.name}: {part}, entry {number}"
                for case in _matching(where, entry, cases):
                    found.setdefault(case, (entry["experiment"], entry["why"]))
    tasks = {task.case: task for task in grids.tasks(tier)}
    rest = {case: (one.experiments[0], REST) for case, one in tasks.items() if case not in last}
    order: dict[Case, tuple[str, str]] = {}
    for part in (chosen, rest, last):
        for case, asked in part.items():
            order.setdefault(case, asked)
    return [
        Selected(experiment, tasks[case], why, rank)
        for rank, (case, (experiment, why)) in enumerate(order.items())
    ]


def _read(path: Path) -> dict:
    try:
        data = loads(path.read_text(encoding="utf-8"))
    except PlainYamlError as error:
        raise ValueFileError(f"{path.name}: {error}") from error
    if not isinstance(data, dict) or set(data) != {"tier", "first", "last"}:
        raise ValueFileError(f"{path.name}: expected the keys tier, first and last")
    for part in ("first", "last"):
        if not isinstance(data[part], list):
            raise ValueFileError(f"{path.name}: {part}: expected a list of entries")
    return data


def _matching(where: str, entry, cases: dict[str, tuple[Case, ...]]) -> list[Case]:
    """The cases of an entry, by its keys in the order in which they stand, the first slowest."""
    if not isinstance(entry, dict) or not {"why", "experiment"} <= set(entry):
        raise ValueFileError(f"{where}: expected why, experiment and fields of cases")
    if entry["experiment"] not in cases:
        known = ", ".join(cases)
        raise ValueFileError(
            f"{where}: experiment={entry['experiment']!r}: expected one of {known}"
        )
    asked = {k: _values(k, v) for k, v in entry.items() if k not in ("why", "experiment")}
    places = []
    used = {key: set() for key in asked}
    for case in cases[entry["experiment"]]:
        fields = {"variant": case.variant, **case.to_json()}
        unknown = [key for key in asked if key not in fields]
        if unknown:
            raise ValueFileError(f"{where}: {unknown[0]}: expected one of {', '.join(fields)}")
        if all(fields[key] in values for key, values in asked.items()):
            place = tuple(values.index(fields[key]) for key, values in asked.items())
            places.append((place, case))
            for key, index in zip(asked, place, strict=True):
                used[key].add(index)
    for key, values in asked.items():
        for index, value in enumerate(values):
            if index not in used[key]:
                raise ValueFileError(
                    f"{where}: {key}={value!r}: no case of {entry['experiment']} has it "
                    "together with the other keys"
                )
    # A stable sort: what the keys leave open stays in the grid's order.
    return [case for _, case in sorted(places, key=lambda pair: pair[0])]


def _values(key: str, value) -> list:
    if key in _LISTS:
        return [value]
    return value if isinstance(value, list) else [value]
