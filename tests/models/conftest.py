"""One thread for all of models' tests: the machine may be shared, and the tensors are small."""

import os

import pytest
import torch

from tests.models.ring_ranks import Pools

if os.environ.get("TRITON_INTERPRET"):
    from tests.models import interpreter

    interpreter.hasten()


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def rings():
    """Gloo groups of any size, each started when first asked for."""
    pools = Pools()
    yield pools
    pools.close()
