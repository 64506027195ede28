"""What every test session does first."""

import fcntl
import json
import os
import pickle
from collections.abc import Callable

import pytest

# Before torch is imported, here and in what the tests start: pytest has a worker for each core.
# Of several threads those that wait sleep: if they spun, on cores that another worker uses too,
# each small operation would take 10 ms.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import torch

# Before Triton is imported, whose own functions are made for one or the other: without
# a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import settings

from experiments.atomic_write import atomic_write

settings.register_profile(
    "repository", max_examples=60, deadline=None, derandomize=True, print_blob=True
)
settings.load_profile("repository")


def pytest_xdist_auto_num_workers(config):
    """A worker for each core, but none besides this process where there is a card to share."""
    return 0 if torch.cuda.is_available() else None


def pytest_collection_modifyitems(items):
    """What forks, and what takes a minute, comes first: a worker grows, and a fork copies it."""
    first = ("experiments", "pipeline")
    items.sort(key=lambda item: item.path.parent.name not in first)


@pytest.fixture(autouse=True)
def one_thread():
    """What `pytest_sessionstart` set: a later test that forks would hang, and only by its place."""
    yield
    assert torch.get_num_threads() == 1, "this test has run torch on several threads"


def pytest_sessionstart(session):
    """One thread, and one call of MKL's vectorised logarithm.

    The supervisor forks: a process that has run a torch op on several threads would
    hand its children a thread pool that hangs.

    In a fresh process whose first such call comes from two threads at once, one
    of them sometimes works at low accuracy (4e-5), for that call only.
    """
    torch.set_num_threads(1)
    torch.full((64,), 2.0).log()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make, *arguments)`: what `make` returns, made by one worker for all."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "once"
    folder.mkdir(exist_ok=True)

    def made(name: str, make: Callable, *arguments):
        path = folder / f"{name}.pickle"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                with atomic_write(path) as partial:
                    partial.write_bytes(pickle.dumps(make(*arguments)))
        return pickle.loads(path.read_bytes())

    made.folder = folder
    return made


@pytest.fixture(scope="session")
def ledger():
    """`build/claims.json` by the published records of this repository."""
    from analysis import claims
    from analysis.records import frame as records
    from analysis.selection import published

    claims_file = claims.load(published.CLAIMS)
    verdicts = claims.evaluate(
        claims_file, records.load(records.repository() / "results" / "published")
    )
    return json.loads(claims.to_json(claims_file, verdicts))
