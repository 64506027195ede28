"""Step 2: each kernel against the float64 oracle before anything is timed.

A check is a case that runs our kernels by name, in a process of its own: one that is wrong, hangs,
crashes or takes all memory is marked, and takes nothing else with it.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from experiments.case import Case
from experiments.private_folder import temporary
from models.kernels import HAS_TRITON, MISSING, withdrawn
from models.registry import VARIANTS

# The variant that runs the kernels of a table, where it is given the backend by name.
VARIANT = {
    "dilated": "dilated-triton",
    "gluon": "dilated-gluon",
    "block_sparse": "block-sparse",
    "hop": "ring-distributed",
}
DIRECTION = {"forward": "forward", "forward_backward": "backward"}
# The table whose kernels a variant runs by name.
_TABLE_OF = {
    ("models.dilated", "triton"): "dilated",
    ("models.dilated", "triton-tf32"): "dilated",
    ("models.dilated", "gluon"): "gluon",
    ("models.block_sparse", "triton"): "block_sparse",
}


@dataclass(frozen=True)
class Check:
    """The kernels of `table` in one direction, on `case`, whose variant runs them by name."""

    table: str
    case: Case

    @property
    def direction(self) -> str:
        return DIRECTION[self.case.pass_]

    def __str__(self) -> str:
        blocks = f", blocks of {self.case.block_size}" if self.case.block_size else ""
        where = f"{self.case.dtype}, head_dim {self.case.head_dim}{blocks}"
        return f"{self.table}.{self.direction} at {where}"


@dataclass(frozen=True)
class Mark:
    """What became of a check. status: "ok", "failed", "oom", "timeout", "unsupported" or "not run".

    relative_rms, baseline: error of the output, or of the worst gradient, and dense attention's
    own; None where there is none.
    """

    table: str
    direction: str
    dtype: str
    head_dim: int
    block_size: int | None
    status: str
    reason: str | None
    relative_rms: float | None = None
    baseline: float | None = None

    @property
    def is_bad(self) -> bool:
        """Whether the kernel was seen to be wrong."""
        return self.status not in ("ok", "not run", "unsupported")


def checks_at_real_sizes() -> list[Check]:
    """The fewest that cover every kernel, type, head size and direction of a card, ragged."""
    common = {"batch": 1, "heads": 6}
    sizes = (64, 128, 32, 256, 72, 40)
    longnet = {
        "segment_lengths": (2048, 4096, 8192, 16384, 32768),
        "dilation_rates": (1, 2, 4, 6, 12),
        "seq_len": 20011,
    }
    blocks = {"pattern": "random", "sparsity": 0.9, "block_size": 64, "seq_len": 10007}
    ring = {"world_size": 2, "simulated": True, "seq_len": 9001}
    half = ("float16", "bfloat16")
    found = []
    for number, (dtype, dim) in enumerate(itertools.product((*half, "float32"), sizes)):
        shape = {**common, "dtype": dtype, "head_dim": dim}
        # Causality and grouped queries change from one to the next: each is met at every type.
        shape |= {"is_causal": number % 2 == 0, "kv_heads": (6, 2, 3)[number % 3]}
        found.append(("dilated", {**shape, **longnet}))
        if dtype in half:
            found.append(("block_sparse", {**shape, **blocks}))
        if dtype in half and dim in (64, 128):
            found.append(("gluon", {**shape, **longnet}))
        if dim in (32, 64, 128, 256):
            found.append(("hop", {**shape, **ring}))
    for dtype, is_causal in zip(half, (True, False), strict=True):
        # Neighbouring blocks list the same keys here, and so are taken by one program.
        window = {**common, **blocks, "pattern": "local_window", "dtype": dtype, "head_dim": 64}
        found.append(("block_sparse", {**window, "is_causal": is_causal, "kv_heads": 6}))
    for size in (16, 32, 128):
        shape = {**common, **blocks, "block_size": size, "dtype": "float16", "head_dim": 64}
        found.append(("block_sparse", {**shape, "is_causal": True, "kv_heads": 6}))
    return _of_both_directions(found)


def checks_interpreted() -> list[Check]:
    """The same kernels in tiny shapes, for Triton's interpreter, which has no bfloat16."""
    common = {"batch": 1, "heads": 2, "kv_heads": 1}
    branches = {"segment_lengths": (16, 32), "dilation_rates": (1, 2), "seq_len": 20}
    blocks = {"pattern": "random", "sparsity": 0.5, "block_size": 16, "seq_len": 20}
    ring = {"world_size": 2, "simulated": True, "seq_len": 20}
    found = []
    for dtype, dim in (("float16", 32), ("float32", 40)):
        shape = {**common, "dtype": dtype, "head_dim": dim, "is_causal": dtype == "float16"}
        if dtype == "float16":
            found.append(("block_sparse", {**shape, **blocks}))
        found += [("dilated", {**shape, **branches}), ("hop", {**shape, **ring})]
    return _of_both_directions(found)


def _of_both_directions(found) -> list[Check]:
    """Forward checks first: a backward pass is not tried where the forward pass failed."""
    return [
        Check(table, Case(variant=VARIANT[table], pass_=pass_, **fields))
        for pass_ in DIRECTION
        for table, fields in found
    ]


def why_no_kernels(device: str) -> str | None:
    """Why there are no kernels to check on `device`, or None."""
    if not HAS_TRITON:
        return MISSING
    import torch

    from models.kernels import tiles

    if device == "cpu":
        return tiles.why_not(torch.empty(1, 16, 1, 16))
    return None


def examine(case: Case, device: str) -> dict:
    """In a process of its own: the errors of one check; CheckFailed beyond the allowance.

    A kernel that gives other bits the second time has a race, and fails too: ours use no atomics.
    """
    import torch

    from experiments import check, measure
    from experiments.workload import build

    measure.prepare(device)
    backend = "gluon" if case.variant == VARIANT["gluon"] else "triton"
    work = build(case, device, backend=backend)
    work.backend()  # UnsupportedBackend where it cannot
    rows = check.sample_rows(case.seq_len, case.seed).to(work.inputs[0].device)
    with temporary("trust") as folder:
        reference = folder / "reference.pt"
        check.write_reference(work, reference)
        if case.pass_ == "forward":
            found = [[work.step()] for _ in range(2)]
            error = check.compare(case, found[0][0], [], reference)["output"]
        else:
            found = [work.limited_to(rows).gradients() for _ in range(2)]
            # Forward alone: the backward pass was taken twice.
            out = work.run(*work.inputs).detach()
            error = check.compare(case, out, found[0], reference)["gradient"]
    if not all(map(torch.equal, *found)):
        raise check.CheckFailed("gives other bits when it is called again")
    return {"relative_rms": error["relative_rms"], "baseline": error["baseline_relative_rms"]}


def examine_all(
    checks: list[Check], run_all: Callable, known: dict[Check, str], each_s: float
) -> list[Mark]:
    """A mark for each check.

    run_all(checks) -> their outcomes (`experiments.children.Outcome`), of at most `each_s` seconds
    each. known: reasons of those that need not be run, since they do not compile.
    """
    _import(checks)
    marks: dict[Check, Mark] = {c: _mark(c, "failed", reason) for c, reason in known.items()}
    for direction in DIRECTION.values():
        waiting = []
        for one in checks:
            if one.direction != direction or one in marks:
                continue
            before = marks.get(replace(one, case=replace(one.case, pass_="forward")))
            if before is not None and before.is_bad:
                reason = f"its forward pass {before.status}: {before.reason}"
                marks[one] = _mark(one, "failed", reason)
            else:
                waiting.append(one)
        for one, outcome in zip(waiting, run_all(waiting), strict=True):
            if outcome.status == "timeout" and outcome.seconds < each_s:
                # The step's time ended, which is no fault of the kernel.
                marks[one] = _mark(one, "not run", "the time was up while it ran")
                continue
            value = outcome.value if outcome.status == "ok" else {}
            marks[one] = _mark(one, outcome.status, outcome.reason, **value)
    return [marks[one] for one in checks]


def _import(checks: list[Check]) -> None:
    """What their processes need is imported before they are forked, so that they need not."""
    needed = {module for one in checks for module in VARIANTS[one.case.variant].modules}
    # The last is what torch.autograd.grad imports when it is given cotangents.
    for module in (*needed, "experiments.workload", "torch.fx.experimental.symbolic_shapes"):
        importlib.import_module(module)


def _mark(one: Check, status: str, reason: str | None, **errors) -> Mark:
    case = one.case
    place = (one.table, one.direction, case.dtype, case.head_dim, case.block_size)
    return Mark(*place, status, reason, **errors)


def withdraw(marks: list[Mark]) -> None:
    """Have "auto" pass over every kernel that was seen to be wrong, in either direction."""
    withdrawn.restore()
    for mark in marks:
        if mark.is_bad:
            withdrawn.withdraw(mark.table, mark.dtype, mark.head_dim, str_of(mark))


def str_of(mark: Mark) -> str:
    """A mark in a sentence."""
    blocks = f", blocks of {mark.block_size}" if mark.block_size else ""
    where = f"{mark.dtype}, head_dim {mark.head_dim}{blocks}"
    words = {"failed": "failed its check", "oom": "ran out of memory", "timeout": "did not end"}
    return f"{mark.table}.{mark.direction} {words[mark.status]} at {where}: {mark.reason}"


def why_failed(case: Case, marks: list[Mark]) -> str | None:
    """Why a case cannot be measured: it names a kernel that was seen to be wrong. None if it can.

    A case of "auto" is measured by what "auto" then takes.
    """
    variant = VARIANTS[case.variant]
    table = _TABLE_OF.get((variant.module, variant.options.get("backend")))
    if table is None:
        return None
    needed = ["forward"] if case.pass_ == "forward" else list(DIRECTION.values())
    for mark in marks:
        same = (mark.table, mark.dtype) == (table, case.dtype) and mark.direction in needed
        if (
            mark.is_bad
            and same
            and withdrawn.padded(mark.head_dim) == withdrawn.padded(case.head_dim)
        ):
            return str_of(mark)
    return None


def to_json(marks: list[Mark]) -> list[dict]:
    """For the folder of a campaign."""
    return [asdict(mark) for mark in marks]


def of_json(found: list[dict]) -> list[Mark]:
    """What `to_json` made."""
    return [Mark(**mark) for mark in found]
