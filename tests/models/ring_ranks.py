"""Ranks for the tests of ring attention: processes of one gloo group that run jobs.

They are forked by a server that has only imported torch: the tests' own process has run torch ops,
after which a fork is not safe, and new processes would import for seconds. They meet through a
file, so they need no port.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

# What all ranks import, once.
_PRELOAD = (
    "pytest",
    "hypothesis",
    "torch.distributed.tensor",
    "torch._dynamo",
    "models.block_sparse",
    "models.dilated",
    "models.ring.attention",
    "tests.models.ring_ranks",
)


@dataclass(frozen=True)
class Outcome:
    """The result of one rank's job: its value, its exception, or neither where it is gone.

    exit_code: of a rank that ended instead of answering; negative: the signal that ended it.
    seconds: from the start of the job to its end, as the rank measured.
    """

    value: object = None
    error: BaseException | None = None
    trace: str = ""
    seconds: float = 0.0
    exit_code: int | None = None


class Ranks:
    """`world_size` processes that are the ranks of one group; use as a context.

    store: "file", or "rank 0": a TCPStore that lives and dies with rank 0.
    """

    def __init__(self, world_size: int, store: str = "file"):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_PRELOAD))
        self.world_size = world_size
        self._folder = tempfile.mkdtemp(prefix="ring-")
        path = os.path.join(self._folder, "store")
        self._pipes, self._processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, world_size, path, store), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self.run(_started)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def run(self, function, *args, limit_s: float = 60, **options) -> list:
        """Results of `function(*args, **options)` on all ranks, in rank order.

        function, args: picklable. Raises AssertionError with the text of every rank's failure,
        also where a rank takes longer than `limit_s`.
        """
        outcomes = self.outcomes(function, *args, limit_s=limit_s, **options)
        failed = [
            f"rank {rank}: {found.trace or f'ended with exit code {found.exit_code}'}"
            for rank, found in enumerate(outcomes)
            if found.error is not None or found.exit_code is not None
        ]
        if failed:
            raise AssertionError("\n".join(failed))
        return [found.value for found in outcomes]

    def outcomes(
        self, function, *args, limit_s: float = 60, without=(), **options
    ) -> list[Outcome | None]:
        """The outcome of `function(*args, **options)` on every rank, in rank order.

        Ranks in `without` do it too but are not waited for: None. After `limit_s` all ranks are
        killed and AssertionError names those that had not ended.
        """
        job = pickle.dumps((function, args, options))
        for pipe in self._pipes:
            pipe.send_bytes(job)
        found: dict[int, Outcome | None] = dict.fromkeys(without)
        deadline = time.monotonic() + limit_s
        while len(found) < self.world_size:
            left = {rank: self._pipes[rank] for rank in range(self.world_size) if rank not in found}
            ready = wait(left.values(), max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise AssertionError(f"ranks {sorted(left)} took more than {limit_s} s; killed")
            for rank, pipe in left.items():
                if pipe in ready:
                    found[rank] = self._outcome(rank, pipe)
        return [found[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """End all ranks, with force."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        os.kill(self._processes[rank].pid, number)

    def _outcome(self, rank, pipe) -> Outcome:
        try:
            return pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self._processes[rank].join()
            return Outcome(exit_code=self._processes[rank].exitcode)


class Pools:
    """Groups of ranks by world size, started when first asked for and reused."""

    def __init__(self):
        self._pools: dict[int, Ranks] = {}

    def run(self, world_size: int, function, *args, **options) -> list:
        """As `Ranks.run`; a group in which a job failed is not used again."""
        try:
            return self.ranks(world_size).run(function, *args, **options)
        except AssertionError:
            self._pools.pop(world_size).close()
            raise

    def ranks(self, world_size: int) -> Ranks:
        """The group of that size, for jobs that leave it as good as before."""
        if world_size not in self._pools:
            self._pools[world_size] = Ranks(world_size)
        return self._pools[world_size]

    def close(self) -> None:
        """End all ranks of all groups."""
        for ranks in self._pools.values():
            ranks.close()
        self._pools.clear()


def _serve(pipe, rank: int, world_size: int, path: str, store: str) -> None:
    """The process of a rank: join the group, then run one job after another."""
    torch.set_num_threads(1)
    shared = dist.FileStore(path, world_size)
    if store == "rank 0":
        if rank == 0:
            hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            shared.set("port", str(hosted.port))
            shared = hosted
        else:
            port = int(shared.get("port"))
            shared = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "gloo", store=shared, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    while True:
        try:
            function, args, options = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        start = time.perf_counter()
        try:
            value = function(*args, **options)
            found = Outcome(value, seconds=time.perf_counter() - start)
        except BaseException as error:  # pytest's own failures are no Exceptions
            seconds = time.perf_counter() - start
            found = Outcome(error=_plain(error), trace=traceback.format_exc(), seconds=seconds)
        pipe.send_bytes(pickle.dumps(found))


def _plain(error: BaseException) -> BaseException:
    """The error without its traceback and causes, which do not travel."""
    try:
        return type(error)(*(str(x) for x in error.args))
    except TypeError:
        return RuntimeError(repr(error))


def _started() -> None:
    dist.barrier()
