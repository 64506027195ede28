"""A fast interpreter of Triton, a process in which it compiles, and rings of processes."""

import os

import pytest

from tests.models.compiling import Compiler
from tests.models.ring_ranks import Pools

if os.environ.get("TRITON_INTERPRET"):
    from tests.models import interpreter

    interpreter.hasten()


@pytest.fixture(scope="package")
def compiler():
    """Runs scripts where Triton compiles."""
    made = Compiler()
    yield made
    made.close()


@pytest.fixture(scope="package")
def rings():
    """Gloo groups of any size, each started when first asked for."""
    pools = Pools()
    yield pools
    pools.close()
