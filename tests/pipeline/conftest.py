"""Copies of the repository, and Snakemake run in them."""

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Has imported what every run of Snakemake does, and runs each in a fork, in the folder asked for.
# What is the repository's own is not imported here: a copy's is another.
_SERVER = """
import json, os, sys
import pandas, snakemake.cli, snakemake.report
from snakemake.cli import get_argument_parser, main
get_argument_parser()
for line in sys.stdin:
    folder, arguments, told = json.loads(line)
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(told, os.O_CREAT | os.O_APPEND | os.O_WRONLY), stream)
        os.chdir(folder)
        sys.path[0] = folder
        sys.argv = ["snakemake", *arguments]
        status = 1
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def fresh_copy(folder: Path) -> Path:
    """The repository's own files as a clone would have them, without anything that was built."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@cache
def _server() -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER], env=environment, cwd=tempfile.gettempdir(), **pipes
    )
    atexit.register(server.kill)
    return server


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the copy's workflow with this environment's Snakemake; all that it tells is `stdout`."""
    server = _server()
    with tempfile.NamedTemporaryFile("r") as told:
        server.stdin.write(json.dumps([str(folder), arguments, told.name]) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, told.read(), "")


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule a dry run lists."""
    return jobs(snakemake(folder, "-n", *arguments))


def jobs(done: subprocess.CompletedProcess) -> dict[str, int]:
    """How many of each rule a dry run has listed."""
    assert done.returncode == 0, done.stdout
    table = re.search(r"job +count\n[- ]+\n(.*?)\n\n", done.stdout, re.S)
    if table is None:
        assert "Nothing to be done" in done.stdout
        return {}
    counts = {line.split()[0]: int(line.split()[1]) for line in table.group(1).splitlines()}
    return {rule: n for rule, n in counts.items() if rule not in ("all", "experiments", "total")}
