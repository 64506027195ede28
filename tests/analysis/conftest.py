"""Synthetic records of both experiments, written and read once a session."""

import pytest

from analysis import records
from tests.analysis import synthetic


@pytest.fixture(scope="session")
def laptop_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("laptop") / "published"
    for experiment in ("dilated", "comprehensive"):
        synthetic.write(root, experiment)
    return root


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("smoke") / "local"
    for experiment in ("dilated", "comprehensive"):
        synthetic.write(root, experiment, "smoke")
    return root


@pytest.fixture(scope="session")
def laptop(laptop_root):
    return records.load(laptop_root)


@pytest.fixture(scope="session")
def smoke(smoke_root):
    return records.load(smoke_root)


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    return records.load(synthetic.write_all(tmp_path_factory.mktemp("both") / "published"))
