"""Ahead-of-time compilation of exactly what calls of our kernels launch, without the card.

Each call runs in a process of its own, on tensors whose memory is not touched, with a stand-in for
Triton's driver that names the card and launches nothing. All else is Triton's own: types,
divisibility, constants and options, hence also the key in its cache on disk (TRITON_CACHE_DIR),
where the same call on the card finds the compiled kernel.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import get_cache_key, make_backend
from triton.compiler.errors import CompilationError

from models.kernels import tiles
from models.kernels.calls import Call, problem
from models.kernels.resource_usage import (
    SHARED_BYTES,
    ResourceUsage,
    ptxas_log,
    read_usage,
    why_not_raced,
)

# Seconds per call; the slowest call here takes some 20 on a busy machine.
LIMIT = 120.0
# Reasons of calls that the deadline left or cut off, and of no others.
BEFORE, WHILE = "the time was up before it", "the time was up while it compiled"


@dataclass(frozen=True)
class Kernel:
    """One compiled form. code: digest of its PTX. cached: whether it was in the cache."""

    name: str
    built: ResourceUsage
    code: str
    cached: bool


@dataclass(frozen=True)
class Compiled:
    """The kernels of a call in the order of its launches; reason: why there are none, or None."""

    call: Call
    kernels: tuple[Kernel, ...] = ()
    reason: str | None = None

    def fault(self, capability: int) -> str | None:
        """Why the call's kernels may not be used on a card of `capability`, or None."""
        faults = (kernel.built.fault(tiles.generation(capability)) for kernel in self.kernels)
        return self.reason or next((fault for fault in faults if fault), None)

    def why_not_raced(self, capability: int) -> str | None:
        """Why the call's tile cannot be the fastest on a card of `capability`, or None."""
        kernels = [kernel.built for kernel in self.kernels]
        return self.reason or why_not_raced(kernels, tiles.generation(capability))


class Driver:
    """A stand-in for Triton's driver of a card of `capability`: a launch does nothing."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)
        # A number that no card has: kernels that Triton keeps for it are never launched on one.
        self.get_current_device = lambda: -capability
        self.get_current_stream = lambda device: 0
        self.get_current_target = lambda: self.target
        self.launcher_cls = lambda source, metadata: lambda *arguments: None
        self.utils = SimpleNamespace(
            # Too much shared memory is a fault to be reported and not to be raised.
            get_device_properties=lambda device: {"max_shared_mem": 2**31},
            load_binary=lambda *binary: (None, None, 0, 0, 1024),
        )


def compile_here(call: Call, capability: int) -> tuple[Kernel, ...]:
    """Compile the kernels of `call` in this process, which can launch no kernel afterwards."""
    made, start = [], time.monotonic()
    with ptxas_log() as log, tiles.assumed(capability):

        def listen(src, metadata, metadata_group, times, cache_hit):
            nonlocal start
            seconds = time.monotonic() - start
            files, shared = metadata_group, metadata["shared"]
            names = src.fn.arg_names
            place = names.index("ROTATED") if "ROTATED" in names else None
            rotated = bool(src.constants.get((place,)))
            takes = read_usage(files, shared, capability, log.getvalue(), seconds, rotated=rotated)
            ptx = next(Path(path) for path in files.values() if path.endswith(".ptx"))
            code = sha256(ptx.read_bytes()).hexdigest()[:16]
            made.append(Kernel(src.fn.__name__, takes, code, cache_hit))
            log.seek(0)
            log.truncate()
            start = time.monotonic()

        def is_skipped(*, fn, **_):
            return call.launches is not None and fn.name not in call.launches

        triton.runtime.driver.set_active(Driver(capability))
        triton.knobs.compilation.listener = listen
        triton.knobs.runtime.jit_cache_hook = is_skipped
        with forced(call):
            problem(call, "cpu", values=False)()
    return tuple(made)


def forced(call: Call) -> contextlib.AbstractContextManager:
    """A context in which `call` runs with its own tile, if it has one."""
    if call.tile is None:
        return contextlib.nullcontext()
    return tiles.forced(call.table, call.kernel, call.tile)


def compile_ahead(
    calls: Sequence[Call], *, capability: int, processes: int, deadline: float
) -> list[Compiled]:
    """Results of `compiling`, in the order of `calls`."""
    found = dict(compiling(calls, capability=capability, processes=processes, deadline=deadline))
    return [found[number] for number in range(len(calls))]


def compiling(
    calls: Sequence[Call], *, capability: int, processes: int, deadline: float, limit: float = LIMIT
) -> Iterator[tuple[int, Compiled]]:
    """Compile calls in forked processes, in the order of `calls`.

    The processes do not touch CUDA; the caller must not have run torch ops on several threads.

    Args:
        calls: to compile.
        capability: compute capability of the card, 90 for Hopper.
        processes: how many at once.
        deadline: by `time.monotonic()`.
        limit: seconds per call.

    Yields:
        (index in `calls`, result) as each ends. A call that fails, crashes, takes longer than
        `limit`, or is left at the deadline has that as its `reason`, and affects no other call.

    Raises:
        ValueError: where Triton interprets kernels, or no tiles are for that capability.
    """
    if tiles.INTERPRETED:
        raise ValueError("TRITON_INTERPRET: kernels are interpreted in this process, not compiled")
    if tiles.generation(capability) not in SHARED_BYTES:
        raise ValueError(f"capability={capability}: no tiles are for it")
    _load_once(capability)
    waiting = list(reversed(range(len(calls))))
    running: dict[Connection, _Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes and time.monotonic() < deadline:
                number = waiting.pop()
                child = _Child(number, calls[number], capability, limit)
                running[child.connection] = child
            now = time.monotonic()
            until = min([deadline, *(child.until for child in running.values())])
            for connection in wait(list(running), max(0.0, until - now)) if running else ():
                child = running.pop(connection)
                yield child.number, child.result()
            now = time.monotonic()
            for connection, child in list(running.items()):
                if now >= min(child.until, deadline):
                    del running[connection]
                    child.kill()
                    late = f"not compiled within {limit:g} s"
                    reason = late if now >= child.until else WHILE
                    yield child.number, Compiled(child.call, reason=reason)
            if now >= deadline:
                while waiting:
                    number = waiting.pop()
                    yield number, Compiled(calls[number], reason=BEFORE)
    finally:
        for child in running.values():
            child.kill()


def _load_once(capability: int) -> None:
    """Do once what takes each process seconds: imports, and digests of Triton's own files."""
    import torch._dynamo  # noqa: F401  imported by the first call of any custom op

    backend = make_backend(GPUTarget("cuda", capability, 32))
    get_cache_key(SimpleNamespace(hash=str), backend, backend.parse_options({}), {})


class _Child:
    """One call compiled in a process of its own, in a process group with its assembler."""

    def __init__(self, number: int, call: Call, capability: int, limit: float):
        self.number, self.call, self.until = number, call, time.monotonic() + limit
        self.connection, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        arguments = (theirs, call, capability, limit)
        self.process = context.Process(target=_child, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def result(self) -> Compiled:
        try:
            made = self.connection.recv()
        except EOFError:
            self.process.join()
            made = f"the process that compiled it ended with {_ending(self.process.exitcode)}"
        self.kill()
        if isinstance(made, str):
            return Compiled(self.call, reason=made)
        return Compiled(self.call, made)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _message(error: Exception) -> str:
    """An error's message in one line; of Triton's, which quote the source, only the end of that.

    Of a function that a kernel calls, Triton chains an error per call: the first cause says why.
    """
    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    lines = str(error).strip().splitlines()
    if isinstance(error, CompilationError) and len(lines) > 3:
        # The mark is below the line at fault.
        marks = [number for number, line in enumerate(lines) if line.strip() == "^"]
        at_fault = lines[marks[-1] - 1 :] if marks else lines[-1:]
        lines = [lines[0], *(line for line in at_fault if line.strip() != "^")]
    return " ".join(" ".join(lines).split())[:300]


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _child(connection: Connection, call: Call, capability: int, limit: float) -> None:
    os.setpgid(0, 0)
    # If the parent is gone, nothing else ends this process. A handler of the parent's is removed.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(limit) + 5)
    torch.set_num_threads(1)
    try:
        connection.send(compile_here(call, capability))
    except Exception as error:  # of any kind that a compiler raises: it is the result
        message = _message(error)
        connection.send(f"{type(error).__name__}: {message}" if message else type(error).__name__)
