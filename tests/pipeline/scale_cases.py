"""As many cases as asked for: grids of them, and records that pass the gate.

They are the full cases of a CPU, the quick ones first, and then the same at other lengths, with
more heads and at larger batches, until there are enough. All are of the tier `laptop`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from itertools import islice, product
from pathlib import Path

from experiments import grid, rounds, trusted
from experiments.case import Case
from experiments.digest import code_digest
from experiments.grid import Task
from experiments.machine import Machine, describe
from tests.analysis import synthetic

TIER = "laptop"
# Of a length, of heads and of the batch; without the first, which is the case itself.
_TIMES = [*product((1, 2, 4), (1, 3), (1, Fraction(3, 4), Fraction(5, 8), Fraction(7, 8)))][1:]
# Seconds from a case to the next.
_APART_S = 7
_GAUGE = {"dense_ms": 12.0, "matmul_ms": 3.0, "copy_ms": 15.0}


def tasks(count: int) -> list[Task]:
    """`count` distinct cases, each once for all its experiments; ValueError where there are not."""
    found = list(islice(_tasks(), count))
    if len(found) < count:
        raise ValueError(f"{count} cases: expected at most {len(found)}")
    return found


def _tasks() -> Iterator[Task]:
    own = sorted(grid.tasks(TIER), key=lambda task: not task.is_quick)
    seen = {task.case for task in own}
    yield from own
    for heads, batch, length in _TIMES:
        for task in own:
            case = replace(
                task.case,
                batch=task.case.batch * batch,
                seq_len=int(task.case.seq_len * length),
                heads=task.case.heads * heads,
                kv_heads=task.case.kv_heads * heads,
            )
            if case not in seen:
                seen.add(case)
                yield replace(task, case=case, is_quick=False)


def write_grids(copy: Path, chosen: Iterable[Task]) -> None:
    """Put the cases in the place of those of the tier, in the grid files of a copy."""
    blocks: dict[str, dict[tuple[str, bool], list[Case]]] = {}
    for task in chosen:
        for name in task.experiments:
            of_grid = blocks.setdefault(name, {})
            of_grid.setdefault((task.case.variant, task.is_quick), []).append(task.case)
    for name in grid.names():
        path = copy / f"experiments/{name}.yaml"
        if name not in blocks:
            path.unlink()
            continue
        text = path.read_text(encoding="utf-8")
        head, limits, rest = re.fullmatch(
            r"(.*\n  laptop:\n)(    limits: .*?\n)?    cases:\n.*?(\n  gpu:\n.*)", text, re.DOTALL
        ).groups("")
        lines = [line for block in blocks[name].items() for line in _block(*block)]
        path.write_text("\n".join([f"{head}{limits}    cases:", *lines, rest]), encoding="utf-8")


def _block(key: tuple[str, bool], cases: Sequence[Case]) -> Iterator[str]:
    variant, is_quick = key
    yield f"      - variant: {variant}"
    yield f"        quick: {str(is_quick).lower()}"
    yield "        shapes:"
    for case in cases:
        known = {key: value for key, value in case.to_json().items() if value is not None}
        shape = ", ".join(f"{key}: {_in_yaml(value)}" for key, value in known.items())
        yield f"          - {{{shape}}}"


def _in_yaml(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_records(
    root: Path, chosen: Sequence[Task], number: int = 1, *, is_published: bool = False
) -> Path:
    """The records of a round, from 1, of this machine and today's code, under `root`.

    A published round is vouched for. Returns its folder.
    """
    here = describe("cpu")
    began = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(days=number)
    round_ = rounds.name_at(began) if is_published else rounds.name_of(number)
    for place, task in enumerate(chosen):
        path = rounds.path_of(root, here.id, round_, task.case)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = _record(task, here, number, began + timedelta(seconds=_APART_S * place))
        path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if is_published:
        trusted.add(root, [(here.id, round_)], "nobody real")
    return root / here.id / round_


def _record(task: Task, here: Machine, number: int, began: datetime) -> dict:
    made = synthetic.record(task.case, TIER, synthetic.CPU, number=number)
    made["machine"] = here.to_json()
    made["software"]["code_digest"] = _digest(task.case.variant, task.procedure)
    made["started_at"] = began.isoformat()
    made["gauges"] = {"before": _GAUGE, "after": _GAUGE}
    # Many heads at great lengths would take more than a small machine has.
    most = here.memory_bytes // 2
    for one in made["replicates"]:
        one["peak_memory_bytes"] = min(one["peak_memory_bytes"], most)
        for rank in one["ranks"] or []:
            if rank["peak_memory_bytes"] is not None:
                rank["peak_memory_bytes"] = min(rank["peak_memory_bytes"], most)
        if one["calls"] is not None:
            for key in ("first_peak_bytes", "second_peak_bytes", "kept_bytes"):
                one["calls"][key] = min(one["calls"][key], most)
    return made


@cache
def _digest(variant: str, procedure: str) -> str:
    return code_digest(variant, procedure)
