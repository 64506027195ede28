"""A notebook's kernel in a fork: what this process has imported, and read, it has too.

A kernel that is started as a program imports for seconds what is imported here already.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import matplotlib
import pandas as pd

from experiments.forked_process import Process

# A kernel's command ends with its arguments, behind the module that it runs.
_LAUNCHER = "ipykernel_launcher"


@contextmanager
def kernel_manager() -> Iterator[type]:
    """The class of a kernel manager for one notebook, whose kernel is a fork of this process.

    It is forked now: enter before anything starts a thread. It ends with the context.
    """
    fork = Process(_serve, ())
    try:
        yield _manager_of(fork)
    finally:
        fork.kill()


def _manager_of(fork: Process) -> type:
    from jupyter_client import AsyncKernelManager

    class Manager(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd: list[str], **given) -> None:
            arguments = kernel_cmd[kernel_cmd.index(_LAUNCHER) + 1 :]
            fork.send((arguments, given["env"], given.get("cwd")))
            self.provisioner.process = _Started(fork.pid)
            self.provisioner.pid = self.provisioner.pgid = fork.pid

    return Manager


class _Started:
    """A fork as jupyter_client expects a process to be: a part of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        """The exit status, or None; whoever forked it waits for it."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return None if ended is None else ended.si_status

    wait = poll

    def send_signal(self, number: int) -> None:
        """Where it cannot be sent to its group."""
        os.kill(self.pid, number)


def _serve(pipe: Connection) -> None:
    """Be a kernel with the arguments, environment and folder that come."""
    from ipykernel.kernelapp import IPKernelApp

    arguments, environment, folder = pickle.loads(pipe.recv_bytes())
    os.environ.clear()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    kernel = IPKernelApp.instance()
    kernel.initialize(arguments)
    # What these find out of the kernel that imports them, and were imported before there was one.
    matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]
    pd.set_option("display.max_columns", 20)
    kernel.start()
