"""Scripts that compile kernels: in forks of one process, in which Triton does not interpret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# What all scripts import or look up, once. A fork that ends by a signal or an error is told from
# its exit status; what a script writes goes to files, as this process's own output answers.
_SERVER = """
import json, os, sys, traceback
import torch._dynamo
from models.kernels import aot, calls, compile as kernels, dilated_gluon, gluon_forms
aot._load_once(90)
for line in sys.stdin:
    script, cache, *files = json.loads(line)
    child = os.fork()
    if child == 0:
        if cache:
            os.environ["TRITON_CACHE_DIR"] = cache
        status = 1
        try:
            for number, path in enumerate(files, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            exec(script, {"__name__": "__main__"})
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Compiler:
    """Runs scripts one after another; its process is started when first asked for."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def run(self, script: str, folder: Path, cache: Path | None = None) -> str:
        """What a script prints; what it fails with is raised.

        folder: for its output. cache: Triton's; without one, the user's.
        """
        if self._process is None:
            env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER], text=True, env=env, **pipes
            )
        out, errors = folder / "stdout", folder / "stderr"
        print(
            json.dumps([script, str(cache or ""), str(out), str(errors)]),
            file=self._process.stdin,
            flush=True,
        )
        status = self._process.stdout.readline().strip()
        assert status == "0", f"exit status {status}: {errors.read_text()[-3000:]}"
        return out.read_text()

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
