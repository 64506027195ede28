"""A SLURM cluster on this machine alone, with nodes and cards that are made up.

    python -m tests.cluster.one_machine start FOLDER     # prints what to put in the environment
    python -m tests.cluster.one_machine stop FOLDER

Needs root and slurmctld, slurmd and munge (Debian: apt-get install --no-install-recommends
slurmctld slurmd slurm-client munge). Everything lies in FOLDER and listens on the loopback. A card
is a link to /dev/null: SLURM gives it to one job at a time.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
_START_S, _STOP_S = 20.0, 10.0

_CONF = """\
ClusterName=attention
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
PriorityType=priority/basic
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
MinJobAge=600
InactiveLimit=0
KillWait=5
GresTypes=gpu
DefMemPerCPU=100
"""
_NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs={cpus} RealMemory=16000 Gres=gpu:{model}:{cards} State=UNKNOWN\n"
)

# Snakemake's jobstep plugin takes SLURM_CONF out of the environment of jobs.
_COMMAND = '#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec /usr/bin/{name} "$@"\n'
_COMMANDS = ("srun", "squeue", "scontrol", "scancel")
# Without accounting sacct fails, and Snakemake's executor would wait for its answer for good.
_SACCT = """\
#!/bin/sh
name=; while [ $# -gt 0 ]; do [ "$1" = --name ] && name=$2; shift; done
[ -n "$name" ] || exit 0
exec squeue --noheader --states=all --format='%i|%T' --name "$name"
"""


def is_possible() -> bool:
    """Whether this machine has all that it takes."""
    daemons = os.pathsep.join([*os.get_exec_path(), "/usr/sbin"])
    return os.geteuid() == 0 and all(shutil.which(name, path=daemons) for name in NEEDED)


def start(folder: Path, *, nodes: int = 2, cards: int = 2, cpus: int = 16) -> dict[str, str]:
    """Start it under `folder`; returns what its users need in the environment.

    cards, cpus: of each node, as SLURM is told. RuntimeError where it does not come up.
    """
    folder = folder.resolve()
    host, ports = socket.gethostname().partition(".")[0], _free_ports(nodes + 1)
    for name in ("state", "bin", "dev"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    conf = _CONF.format(folder=folder, host=host, port=ports[0])
    devices = []
    for number in range(nodes):
        conf += _NODE.format(
            node=f"node{number}",
            host=host,
            port=ports[number + 1],
            cpus=cpus,
            cards=cards,
            model="h100",
        )
        for card in range(cards):
            device = folder / f"dev/node{number}-{card}"
            device.unlink(missing_ok=True)
            device.symlink_to("/dev/null")
        named = f"{folder}/dev/node{number}-[0-{cards - 1}]"
        devices.append(f"NodeName=node{number} Name=gpu Type=h100 File={named}\n")
    conf += (
        f"PartitionName=cards Nodes=node[0-{nodes - 1}] Default=YES MaxTime=600 DefaultTime=10\n"
    )
    _write(folder / "slurm.conf", conf)
    _write(folder / "gres.conf", "".join(devices))
    _write(folder / "cgroup.conf", "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    programs = {name: _COMMAND.format(folder=folder, name=name) for name in _COMMANDS}
    for name, text in {**programs, "sacct": _SACCT}.items():
        _write(folder / "bin" / name, text)
        (folder / "bin" / name).chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"], "/usr/sbin"])
    added = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    environment = os.environ | added
    munge = [
        f"--{option}={folder}/{name}"
        for option, name in (
            ("key-file", "munge.key"),
            ("socket", "munge.socket"),
            ("pid-file", "munged.pid"),
            ("log-file", "munged.log"),
            ("seed-file", "munged.seed"),
        )
    ]
    daemons = [["munged", *munge, "--force"], ["slurmctld", "-c"]]
    daemons += [["slurmd", "-N", f"node{number}"] for number in range(nodes)]
    for command in daemons:
        told = subprocess.run(command, env=environment, capture_output=True, text=True)
        if told.returncode:
            stop(folder)
            raise RuntimeError(f"{' '.join(command)}: {told.stderr.strip()}")
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        told = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True
        )
        if told.stdout.split() == ["idle"] * nodes:
            return added
        time.sleep(0.1)
    logs = (folder / "slurmctld.log").read_text("utf-8", "replace")[-2000:]
    stop(folder)
    raise RuntimeError(f"SLURM did not come up: {told.stdout} {told.stderr}\n{logs}")


def stop(folder: Path) -> None:
    """Stop what `start` has started there, jobs first."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    with suppress(OSError, subprocess.TimeoutExpired):
        everyone = ["scancel", "--full", "--state=RUNNING,PENDING", "--me"]
        subprocess.run(everyone, env=environment, capture_output=True, timeout=10)
    for name in ("slurmd-*.pid", "slurmctld.pid", "munged.pid"):
        for file in folder.glob(name):
            with suppress(OSError, ValueError):
                _end(int(file.read_text()))


def _end(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(pid, number)
        end = time.monotonic() + _STOP_S
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["start", "stop"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cards", type=int, default=2, help="of each node")
    options = parser.parse_args()
    if options.what == "stop":
        sys.exit(stop(options.folder))
    if not is_possible():
        sys.exit(f"error: needs root and {', '.join(NEEDED)}")
    for name, value in start(options.folder, nodes=options.nodes, cards=options.cards).items():
        print(f"export {name}={value}")
