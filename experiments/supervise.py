"""The parent of a case: watches its processes and always comes back with a record.

torch is imported here once and never used, so each replicate is a fork: a fresh
process without the seconds of an import. Whatever happens to a child (out of
memory, kill -9, over its time) becomes the record's status.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from experiments import provenance
from experiments.case import Case
from experiments.grid import Limits
from experiments.machine import Machine, memory_available
from experiments.parent import die_with_parent
from experiments.record import SCHEMA_VERSION
from models.registry import VARIANTS


class _Stop(Exception):
    """A case ends without (further) samples: the status and reason of its record."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def supervise(
    experiment: str, tier: str, case: Case, limits: Limits, machine: Machine, digest: str
) -> dict:
    """Measure `case` in child processes on the device held: always comes to a record.

    To be called where torch has not yet run an op on several threads: a fork would
    inherit a thread pool without its threads, and hang.
    """
    started, start = datetime.now(UTC), time.monotonic()
    device = "cpu" if machine.device_kind == "cpu" else "cuda"
    known = dict.fromkeys(("backend", "realised_density", "useful_flops", "ceilings"))
    replicates, error, status, reason = [], None, "ok", None
    with tempfile.TemporaryDirectory(prefix="attention-case-") as folder:
        reference = Path(folder) / "reference.pt"
        try:
            deadline = start + limits.timeout_s
            known |= _reference(case, device, reference, limits, deadline)
            unsupported = known.pop("unsupported", None)
            if unsupported is not None:
                raise _Stop("unsupported", unsupported)
            module = VARIANTS[case.variant].measured_by
            for _ in range(limits.replicates):
                arguments = (case, device, reference, asdict(limits))
                result = _in_child(f"{module}.replicate", arguments, limits, deadline)
                error = result.pop("error")
                replicates.append({**result, "energy_j": None})
        except _Stop as stop:
            # Replicates already there are good: only when there are none is it a time-out.
            if stop.status != "timeout" or not replicates:
                status, reason = stop.status, stop.reason
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment,
        "tier": tier,
        "variant": case.variant,
        "case": case.to_json(),
        "status": status,
        "reason": reason,
        **known,
        "replicates": replicates if status == "ok" else [],
        "error": error if status == "ok" else None,
        "machine": machine.to_json(),
        "software": provenance.software(digest),
        "started_at": started.isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - start, 3),
        "command": provenance.command(experiment, tier, case),
    }


def _reference(case: Case, device: str, path: Path, limits: Limits, deadline: float) -> dict:
    """Have the oracle's rows written to `path`; returns what `make_reference` does."""
    try:
        module = VARIANTS[case.variant].measured_by
        return _in_child(f"{module}.make_reference", (case, device, path), limits, deadline)
    except _Stop as stop:
        # What the oracle cannot do is no result of the variant's.
        if stop.status in ("oom", "timeout"):
            raise _Stop("failed", f"no reference to check against: {stop.reason}") from None
        raise


def _in_child(function: str, arguments: tuple, limits: Limits, deadline: float) -> dict:
    """The value of `experiments.<function>(*arguments)` in a forked child; _Stop if there is none.

    function: "module.name".
    """
    # Imported before the fork, so that children need not: the second is what
    # torch.autograd.grad imports when it is given cotangents, 0.4 s a process.
    case = arguments[0]
    for module in (f"experiments.{function.partition('.')[0]}", *VARIANTS[case.variant].modules):
        importlib.import_module(module)
    if case.pass_ == "forward_backward":
        import torch.fx.experimental.symbolic_shapes  # noqa: F401

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    # The oracle may take what the machine has: the limit is the variant's.
    memory_gib = limits.memory_gib if function.endswith(".replicate") else None
    child = context.Process(
        target=_child, args=(sender, function, arguments, memory_gib, os.getpid())
    )
    kills = _oom_kills()
    child.start()
    sender.close()
    try:
        if not receiver.poll(max(0.0, deadline - time.monotonic())):
            raise _Stop("timeout", f"over its limit of {limits.timeout_s:g} s")
        try:
            status, value = receiver.recv()
        except EOFError:
            child.join()
            raise _died(child.exitcode, kills) from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if status != "ok":
        raise _Stop(status, value)
    return value


def _died(exitcode: int, oom_kills_before: int) -> _Stop:
    if exitcode == -signal.SIGKILL and _oom_kills() > oom_kills_before:
        return _Stop("oom", "killed by the kernel: out of host memory")
    if exitcode < 0:
        return _Stop("failed", f"its process was killed by {signal.Signals(-exitcode).name}")
    return _Stop("failed", f"its process ended with exit code {exitcode} and no result")


def _child(sender, function: str, arguments: tuple, memory_gib, parent: int) -> None:
    """Runs in the fork: die with the parent, be the first to go when memory is short, report."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    Path("/proc/self/oom_score_adj").write_text("1000")
    device = arguments[1]
    if device == "cpu":
        _limit_memory(memory_gib)
    sender.send(_outcome(function, arguments))
    sender.close()
    sys.stdout.flush()
    os._exit(0)


def _outcome(function: str, arguments: tuple) -> tuple[str, object]:
    import torch

    from experiments import check
    from models.errors import UnsupportedBackend

    try:
        module, _, name = function.partition(".")
        return "ok", getattr(importlib.import_module(f"experiments.{module}"), name)(*arguments)
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        return "oom", _first_line(error)
    except UnsupportedBackend as error:
        return "unsupported", _first_line(error)
    except check.CheckFailed as error:
        return "failed", _first_line(error)
    except Exception as error:  # The record tells what it was; nothing is swallowed.
        if "can't allocate memory" in str(error):
            return "oom", _first_line(error)
        return "failed", f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _limit_memory(memory_gib: float | None) -> None:
    """Let allocations fail before the machine swaps: the address space may grow by what is free."""
    allowed = memory_available() * 9 // 10
    if memory_gib is not None:
        allowed = min(allowed, int(memory_gib * 2**30))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + allowed
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _oom_kills() -> int:
    with open("/proc/vmstat") as lines:
        return next((int(x.split()[1]) for x in lines if x.startswith("oom_kill ")), 0)
