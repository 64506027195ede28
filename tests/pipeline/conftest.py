"""Copies of the repository, and Snakemake run in them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fresh_copy(folder: Path) -> Path:
    """The repository's own files as a clone would have them, without anything that was built."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def snakemake(folder: Path, *arguments: str):
    """Run the copy's workflow with this environment's Snakemake."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "snakemake", *arguments]
    env = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=300)


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule a dry run lists."""
    done = snakemake(folder, "-n", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.search(r"job +count\n[- ]+\n(.*?)\n\n", done.stdout + done.stderr, re.S)
    if table is None:
        assert "Nothing to be done" in done.stdout + done.stderr
        return {}
    counts = {line.split()[0]: int(line.split()[1]) for line in table.group(1).splitlines()}
    return {rule: n for rule, n in counts.items() if rule not in ("all", "experiments", "total")}
