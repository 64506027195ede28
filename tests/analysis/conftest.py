"""Synthetic records of every experiment, written and read once per session and worker."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis import catalogue, claims
from analysis.across import overview, provenance
from analysis.records import frame as records
from analysis.rendering import numbers, style, table
from analysis.selection import published
from tests.analysis import synthetic, synthetic_cards
from tests.analysis.claims_cases import EMPTY, data, entry, load


@pytest.fixture(scope="session")
def laptop_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("laptop") / "published"
    for experiment in published.EXPERIMENTS:
        synthetic.write(root, experiment)
    return root


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("smoke") / "local"
    for experiment in published.EXPERIMENTS:
        synthetic.write(root, experiment, "smoke")
    return root


@pytest.fixture(scope="session")
def nothing(tmp_path_factory):
    """A machine that could time no case."""
    root = tmp_path_factory.mktemp("nothing") / "local"
    for experiment in published.EXPERIMENTS:
        synthetic.write(root, experiment, "laptop", "unsupported")
    return records.load(root)


@pytest.fixture(scope="session")
def laptop(laptop_root):
    return records.load(laptop_root)


@pytest.fixture(scope="session")
def smoke(smoke_root):
    return records.load(smoke_root)


@pytest.fixture(scope="session")
def both_root(tmp_path_factory):
    return synthetic.write_all(tmp_path_factory.mktemp("both") / "published")


@pytest.fixture(scope="session")
def both(both_root):
    return records.load(both_root)


@pytest.fixture(scope="session")
def claims_file():
    return claims.load(published.CLAIMS)


@pytest.fixture(scope="session")
def verdicts(claims_file, both):
    """On every claim by the records of both machines."""
    return claims.evaluate(claims_file, both)


@pytest.fixture(scope="session")
def numbers_of():
    """`catalogue.numbers`, for each of the frames above once."""
    made = {}

    def of(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> dict[str, dict]:
        key = (id(frame), experiment, machine)
        if key not in made:
            # With the frame, whose id would be another's once it is gone.
            made[key] = frame, catalogue.numbers(frame, experiment, machine)
        return made[key][1]

    return of


@pytest.fixture(scope="session")
def build(laptop, numbers_of, tmp_path_factory):
    """Everything that write-ups and paper read, of synthetic laptop records."""
    return _built(laptop, numbers_of, tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def build_with_card(laptop_root, numbers_of, tmp_path_factory):
    """The same where a campaign on a card, cut short, stands beside the laptop."""
    root = tmp_path_factory.mktemp("card") / "published"
    shutil.copytree(laptop_root, root)
    synthetic_cards.write(root, synthetic_cards.half_full(), synthetic_cards.H100, 1)
    return _built(records.load(root), numbers_of, tmp_path_factory.mktemp("build-card"))


def _built(frame: pd.DataFrame, numbers_of: Callable, folder: Path) -> Path:
    for experiment in published.EXPERIMENTS:
        found = numbers_of(frame, experiment)
        numbers.save(found, folder / "numbers" / f"{experiment}.json")
        for name, draw in catalogue.figures(experiment).items():
            style.save(draw(frame, experiment), folder / f"figures/{experiment}-{name}.svg")
        for name, make in catalogue.tables(experiment).items():
            table.save(make(frame, "auto"), folder / "tables" / f"{experiment}-{name}")
    for name, draw in overview.FIGURES.items():
        style.save(draw(frame), folder / f"figures/{name}.svg")
    claims_file = claims.load(published.CLAIMS)
    verdicts = claims.evaluate(claims_file, frame)
    (folder / "claims.json").write_text(claims.to_json(claims_file, verdicts))
    files = [*sorted((folder / "numbers").iterdir()), folder / "claims.json"]
    joined = numbers.join(files)
    numbers.save(joined, folder / "numbers.json")
    (folder / "numbers.csv").write_text(provenance.numbers_csv(joined, frame))
    (folder / "records.csv").write_text(provenance.records_csv(frame))
    for name, make in provenance.TABLES.items():
        table.save(make(frame), folder / "tables" / f"provenance-{name}")
    return folder


@pytest.fixture
def judge(tmp_path):
    """(predicate, published, rows, other entries) -> the verdict on the first claim."""

    def run(predicate, published=None, rows=(), others=()):
        claims_file = load(tmp_path, data(entry(predicate, published), *others))
        frame = pd.DataFrame(list(rows)) if rows else EMPTY
        return claims.evaluate(claims_file, frame)[0]

    return run
