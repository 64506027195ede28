"""`python -m experiments.warm run ...`: as `python -m experiments run ...`, in a warm process.

The first call starts a server, which imports torch once and forks for each call; it ends when none
has come for a while. A call costs a fork then, where an interpreter and the import of torch cost
seconds. A server stands for the files as they were when it started: after an edit another one does.
`analysis.warm` has servers of its own kind.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from experiments import console, stop
from experiments.private_folder import SHARED, private

ROOT = Path(__file__).parent.parent
# Seconds without a call after which a server ends, that its start may take with all that it reads,
# and between two looks at whether a caller is to stop.
_IDLE_S, _START_S, _LOOK_S = 20.0, 900.0, 0.5
# And for what runs to end in order.
_STOP_S = 20.0
# Read when Python and libraries are loaded, which a server does once.
_AT_LOAD = (
    *("CUDA_", "GOMP_", "KMP_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TORCH_", "TRITON_"),
    *("LANG", "LC_", "MPL"),
)


@dataclass(frozen=True)
class Kind:
    """What a server has ready, and what it does with a call.

    module: `python -m module --serve ADDRESS LOCK ...` is the server, with `given` at the end.
    folders: it stands for their files as they are, from the repository root. warm_up: done before
    the first call, and look: before each, in the server. run: a call's arguments to its exit
    status, in a fork.
    """

    module: str
    folders: tuple[str, ...]
    warm_up: Callable[[], None]
    run: Callable[[list[str]], int]
    look: Callable[[], None] = lambda: None
    given: tuple[str, ...] = ()


def call(kind: Kind, arguments: list[str]) -> int:
    """Have a server run the command; its exit status, or 1 where the process that ran it died."""
    stop.raise_when_told()
    try:
        check = stop.check_stop()
        with _connected(kind, _address(kind)) as server:
            return _run(server, arguments, check)
    except stop.Stopped as stopped:
        return stopped.status
    except OSError as error:
        print(f"error: {console.in_words(error)}", file=sys.stderr)
        return 2


def _run(server: socket.socket, arguments: list[str], check: Callable[[], None]) -> int:
    request = json.dumps({"arguments": arguments, "folder": os.getcwd(), "env": {**os.environ}})
    streams = array.array("i", [1, 2])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
    body = request.encode()
    server.sendmsg([len(body).to_bytes(4, "big")], ancillary)
    server.sendall(body)
    try:
        # A killed scheduler tells nobody.
        while not select.select([server], [], [], _LOOK_S)[0]:
            check()
        status = server.recv(1)
    except stop.Stopped:
        # It is told by this end, cleans up and says how to go on.
        server.shutdown(socket.SHUT_WR)
        server.settimeout(_STOP_S)
        with suppress(TimeoutError):
            server.recv(1)
        raise
    if not status:
        print("error: the process that ran this command died", file=sys.stderr)
    return status[0] if status else 1


def _address(kind: Kind) -> Path:
    """The socket of the server for this environment and the files as they are."""
    loaded = sorted(item for item in os.environ.items() if item[0].startswith(_AT_LOAD))
    # A job's server ends with the job, and has the devices that the job was given.
    job = os.environ.get("SLURM_JOB_ID")
    of_server = (kind.module, kind.given, sys.executable, ROOT, loaded, _limits(), job)
    sha = hashlib.sha256(repr(of_server).encode())
    for name in kind.folders:
        for path in sorted((ROOT / name).rglob("*")):
            if path.suffix in (".py", ".yaml", ".json"):
                sha.update(f"{path} {path.stat().st_mtime_ns}".encode())
    return private(SHARED) / f"{sha.hexdigest()[:16]}.sock"


def _limits() -> tuple:
    """What a server has from whoever starts it, and its forks from it."""
    mask = os.umask(0o077)
    os.umask(mask)
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    return (
        mask,
        sorted(os.sched_getaffinity(0)),
        os.getpriority(os.PRIO_PROCESS, 0),
        [resource.getrlimit(limit) for limit in sorted(set(limits))],
    )


def _connected(kind: Kind, address: Path) -> socket.socket:
    """A connection to the server at `address`, which is started where there is none."""
    with open(address.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(OSError):
            return _connection(address)
        log, server = _started(kind, address, lock.fileno())
        end = time.monotonic() + _START_S
        while time.monotonic() < end and server.poll() is None:
            with suppress(OSError):
                return _connection(address)
            time.sleep(0.02)
        raise SystemExit(
            f"error: no server could be started: {log.read_text('utf-8', 'replace')[-2000:]}"
        )


def _started(kind: Kind, address: Path, lock: int) -> tuple[Path, subprocess.Popen]:
    """A server that starts, and the log of what goes wrong.

    It holds the lock until it listens, even if this process is gone by then.
    """
    log = address.with_suffix(".log")
    command = [sys.executable, "-m", kind.module, "--serve", str(address), str(lock), *kind.given]
    with open(log, "wb") as errors:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
            pass_fds=[lock],
        )
    return log, server


def ahead(kind: Kind) -> None:
    """Have a server start for calls to come, unless there is one; nothing is waited for.

    What goes wrong those calls meet themselves.
    """
    with suppress(OSError):
        address = _address(kind)
        with open(address.with_suffix(".lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not address.exists():
                _started(kind, address, lock.fileno())


def _connection(address: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(str(address))
    except OSError:
        made.close()
        raise
    return made


def serve(kind: Kind, address: Path, lock: int) -> None:
    """Fork for each call, until none is at work and none has come for a while.

    lock: the descriptor of what others wait for until this one listens.
    """
    # Once a call's streams have taken their place, these cannot be changed any more.
    console.in_any_locale()
    kind.warm_up()
    address.unlink(missing_ok=True)
    running: set[int] = set()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()
        own = address.stat().st_ino
        os.close(lock)
        while select.select([listening], [], [], _IDLE_S)[0] or _still(running):
            _take(kind, listening, running)
        # Whoever has connected by now is still served.
        with suppress(FileNotFoundError):
            if address.stat().st_ino == own:
                address.unlink()
        while _take(kind, listening, running):
            pass


def _take(kind: Kind, listening: socket.socket, running: set[int]) -> bool:
    """Fork for a caller, if there is one."""
    if not select.select([listening], [], [], 0)[0]:
        return False
    caller, _ = listening.accept()
    _still(running)
    kind.look()
    pid = os.fork()
    if pid == 0:
        listening.close()
        _answer(kind, caller)
    running.add(pid)
    caller.close()
    return True


def _still(running: set[int]) -> set[int]:
    """Those that still run; the others are waited for."""
    running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
    return running


def _warm_up() -> None:
    """Import what calls need. No operation runs: forks would inherit a broken thread pool."""
    import torch

    from experiments import grid, supervise  # noqa: F401
    from experiments.digest import code_digest

    torch.set_num_threads(1)
    # What they read is remembered, and the files are the same for as long as this server stands.
    for task in grid.tasks("smoke"):
        code_digest(task.case.variant, task.procedure)


def _measure(arguments: list[str]) -> int:
    from experiments.__main__ import main as run

    return run(arguments)


def _answer(kind: Kind, caller: socket.socket) -> None:
    """Run the command of a caller, with its streams, folder and environment, and end."""
    status = 1
    try:
        head, ancillary, _, _ = caller.recvmsg(4, socket.CMSG_SPACE(8))
        streams = array.array("i", ancillary[0][2])
        request = json.loads(_received(caller, int.from_bytes(head, "big")))
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["env"])
        _end_with(caller)
        status = kind.run(request["arguments"])
    except stop.Stopped as stopped:
        status = stopped.status
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # As the interpreter would.
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):
            caller.sendall(bytes([status or 0]))
        os._exit(0)


def _received(caller: socket.socket, size: int) -> bytes:
    body = b""
    while len(body) < size:
        part = caller.recv(size - len(body))
        if not part:
            raise ConnectionError("the caller is gone")
        body += part
    return body


def _end_with(caller: socket.socket) -> None:
    """Be stopped when the caller is gone: its end is all that it still says."""

    def told(*_) -> None:
        if select.select([caller], [], [], 0)[0]:
            stop.stop(signal.SIGTERM)

    signal.signal(signal.SIGIO, told)
    fcntl.fcntl(caller, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(caller, fcntl.F_SETFL, fcntl.fcntl(caller, fcntl.F_GETFL) | os.O_ASYNC)
    told()


MEASURING = Kind("experiments.warm", ("experiments", "models"), _warm_up, _measure)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(MEASURING, Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(call(MEASURING, sys.argv[1:]))
