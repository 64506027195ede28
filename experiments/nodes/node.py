"""On one of the nodes of a ring: hold its cards, and have `torchrun` start its ranks.

`python -m experiments.nodes.node JSON`, a process of the step that `spread.replicate` makes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import threading
import time

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from experiments import card
from experiments.cards import pool
from experiments.device_lock import hold
from experiments.loopback import INTERFACE, NAMES
from experiments.machine import describe
from experiments.nodes.rank import BUSY, CARDS, tell_failure

_RANK = ("-m", "experiments.nodes.rank")
# Of Linux: the address of an interface.
_SIOCGIFADDR = 0x8915


def main(text: str) -> int:
    """Start the ranks of this node and wait for them; returns the exit status."""
    asked, place = json.loads(text), int(os.environ["SLURM_PROCID"])
    count, name = asked["ranks_of_each"], os.environ["SLURMD_NODENAME"]
    with contextlib.ExitStack() as stack:
        if (place == 0) != (name == asked["host"]):
            tell_failure(f"node {name}: is place {place} of the step, and the first is not its own")
            return 1
        if place == 0:
            # Its supervisor holds them.
            held, os.environ["CUDA_VISIBLE_DEVICES"] = asked["cards"], asked["held"]
            _end_with(asked["supervisor"])
        else:
            here = len(pool(asked["cards"]))
            if here < count:
                tell_failure(f"node {name}: {count} ranks need a card each, and here are {here}")
                return 1
            try:
                held = stack.enter_context(hold(asked["cards"], count, _others_hold_them))
            except BlockingIOError as error:
                tell_failure(f"node {name}: {error}", BUSY)
                return 1
            if (found := describe(held).id) != asked["machine"]:
                tell_failure(f"node {name}: is {found}, and the first node {asked['machine']}")
                return 1
            print(f"    on {os.environ['CUDA_VISIBLE_DEVICES']}", file=sys.stderr, flush=True)
        os.environ[CARDS] = json.dumps(card.held(held, count))
        _bind_gloo(asked["address"])
        # What torchrun sets, and says that it does; a rank has one core, as on one machine.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        options = {
            "nnodes": asked["nodes"],
            "nproc-per-node": count,
            "node-rank": place,
            "master-addr": asked["address"],
            "master-port": asked["port"],
            "max-restarts": 0,
        }
        try:
            torchrun([*(f"--{k}={v}" for k, v in options.items()), *_RANK, text])
        except ChildFailedError:
            # The rank has told.
            return 1
    return 0


def _others_hold_them() -> None:
    # To wait would count as time of the case.
    raise BlockingIOError("its cards are held by another run")


def _end_with(supervisor: int) -> None:
    """End this process, and its ranks with it, once the one that holds the cards is gone."""

    def watch() -> None:
        while True:
            time.sleep(1.0)
            try:
                os.kill(supervisor, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _bind_gloo(address: str) -> None:
    """Have gloo talk to the other nodes by the interface that leads to the first one's address.

    By itself it takes that of the host's name, which on many hosts is the loopback.
    """
    # The loopback is what ranks of one machine were given: no user's choice.
    if os.environ.get(INTERFACE, NAMES[0]) in NAMES:
        os.environ.pop(INTERFACE, None)
        if name := _interface(address):
            os.environ[INTERFACE] = name


def _interface(address: str) -> str | None:
    """The interface whose address packets to `address` come from; None of none that is known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        # Sends nothing: it chooses a way.
        opened.connect((address, 9))
        own = opened.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                asked = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(opened.fileno(), _SIOCGIFADDR, asked)
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
