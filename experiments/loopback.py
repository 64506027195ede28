"""Ranks of one machine talk over its loopback, whatever its name resolves to."""

from __future__ import annotations

import os
import socket

# Of gloo, which reads it when a process group is made.
INTERFACE = "GLOO_SOCKET_IFNAME"
# What the loopback is called.
NAMES = ("lo", "lo0")


def bind_ranks() -> None:
    """Have the ranks of processes forked from here listen on the loopback, unless told another.

    Else gloo takes the address of the host's name, which others may reach.
    """
    names = [name for _, name in socket.if_nameindex() if name in NAMES]
    if names:
        os.environ.setdefault(INTERFACE, names[0])
