"""Synthetic records of every experiment, and what is made of them: once for all workers."""

import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import catalogue, claims
from analysis.across import overview, provenance
from analysis.findings import __main__ as reproduction
from analysis.findings.findings import load as load_findings
from analysis.records import files
from analysis.records import frame as records
from analysis.rendering import figure_csv, numbers, style, table
from analysis.rendering.text import write
from analysis.selection import published
from tests.analysis import synthetic, synthetic_cards
from tests.analysis.claims_cases import EMPTY, data, entry, load


@pytest.fixture(scope="session")
def laptop_root(once):
    return once("laptop-root", _written, once.folder / "laptop" / "published", "laptop")


@pytest.fixture(scope="session")
def smoke(once):
    root = once("smoke-root", _written, once.folder / "smoke" / "local", "smoke")
    return once("smoke", records.load, root)


@pytest.fixture(scope="session")
def nothing(once):
    """A machine that could time no case."""
    folder = once.folder / "nothing" / "local"
    root = once("nothing-root", _written, folder, "laptop", "unsupported")
    return once("nothing", records.load, root)


def _written(root: Path, tier: str, failed: str | None = None) -> Path:
    for experiment in published.EXPERIMENTS:
        synthetic.write(root, experiment, tier, failed)
    return root


@pytest.fixture(scope="session")
def laptop(once, laptop_root):
    return once("laptop", records.load, laptop_root)


@pytest.fixture(scope="session")
def every_laptop(laptop_root):
    """`provenance.table_of` the laptop's records."""
    return provenance.table_of(files.read(laptop_root))


@pytest.fixture(scope="session")
def both_root(once):
    return once("both-root", synthetic.write_all, once.folder / "both" / "published")


@pytest.fixture(scope="session")
def both(once, both_root):
    return once("both", records.load, both_root)


@pytest.fixture(scope="session")
def claims_file():
    return claims.load(published.CLAIMS)


@pytest.fixture(scope="session")
def verdicts(once, claims_file, both):
    """On every claim by the records of both machines."""
    return once("verdicts", claims.evaluate, claims_file, both)


@pytest.fixture(scope="session")
def numbers_of(once, request):
    """`catalogue.numbers` of the frame that a fixture here is called."""

    @cache
    def of(frame: str, experiment: str, machine: str = "auto") -> dict[str, dict]:
        what = request.getfixturevalue(frame), experiment, machine
        return once(f"numbers-{frame}-{experiment}-{machine}", catalogue.numbers, *what)

    return of


@pytest.fixture(scope="session")
def build(once, laptop, every_laptop, numbers_of):
    """Everything that write-ups and paper read, of synthetic laptop records."""
    found = {e: numbers_of("laptop", e) for e in published.EXPERIMENTS}
    return once("build", _built, laptop, every_laptop, found, once.folder / "build")


@pytest.fixture(scope="session")
def build_with_card(laptop_root, build, tmp_path_factory):
    """The same where a campaign on a card, cut short, stands beside the laptop.

    Its figures are worked out, but not rendered: in their place are those of `build`.
    """
    root = tmp_path_factory.mktemp("card") / "published"
    shutil.copytree(laptop_root, root)
    synthetic_cards.write(root, synthetic_cards.half_full(), synthetic_cards.H100, 1)
    read = files.read(root)
    frame, every = records.of_files(read), provenance.table_of(read)
    found = {e: catalogue.numbers(frame, e) for e in published.EXPERIMENTS}
    return _built(frame, every, found, tmp_path_factory.mktemp("build-card"), build / "figures")


def _built(
    frame: pd.DataFrame,
    every: pd.DataFrame,
    found: dict[str, dict],
    folder: Path,
    rendered: Path | None = None,
) -> Path:
    """every: `provenance.table_of` the frame's records. rendered: where every figure's SVG is.

    None: to render them.
    """

    def save(figure: Figure, name: str) -> None:
        path = folder / "figures" / f"{name}.svg"
        if rendered is None:
            style.save(figure, path)
        else:
            write(path.with_suffix(".csv"), figure_csv.to_csv(figure))
            for form in ("svg", "png"):
                path.with_suffix(f".{form}").symlink_to(rendered / f"{name}.{form}")

    for experiment in published.EXPERIMENTS:
        numbers.save(found[experiment], folder / "numbers" / f"{experiment}.json")
        for name, draw in catalogue.figures(experiment).items():
            save(draw(frame, experiment), f"{experiment}-{name}")
        for name, make in catalogue.tables(experiment).items():
            table.save(make(frame, "auto"), folder / "tables" / f"{experiment}-{name}")
    for name, draw in overview.FIGURES.items():
        save(draw(frame), name)
    claims_file = claims.load(published.CLAIMS)
    verdicts = claims.evaluate(claims_file, frame)
    (folder / "claims.json").write_text(claims.to_json(claims_file, verdicts))
    findings = load_findings(published.CLAIMS.with_name("findings.yaml"))
    (column,) = reproduction.columns(findings, {"published": frame})
    entries = reproduction.entries(findings, column, frame)
    numbers.save(entries, folder / "numbers" / "findings.json")
    files = [*sorted((folder / "numbers").iterdir()), folder / "claims.json"]
    joined = numbers.join(files)
    numbers.save(joined, folder / "numbers.json")
    (folder / "numbers.csv").write_text(provenance.numbers_csv(joined, every))
    (folder / "records.csv").write_text(provenance.records_csv(every))
    for name, one in provenance.tables(frame, every).items():
        table.save(one, folder / "tables" / f"provenance-{name}")
    return folder


@pytest.fixture
def judge(tmp_path):
    """(predicate, published, rows, other entries) -> a verdict on the first claim.

    That of the method, or on `side`; of figures checked against each other, that. With the entry's
    `published`, `predicate` and `mechanism`. Further fields are of the entry.
    """

    def run(predicate, published=None, rows=(), others=(), side="method", **fields):
        claims_file = load(tmp_path, data(entry(predicate, published) | fields, *others))
        frame = pd.DataFrame(list(rows)) if rows else EMPTY
        found = claims.evaluate(claims_file, frame)[0]
        one = getattr(found, side) or found.consistency
        told = {name: getattr(found, name) for name in ("published", "predicate", "mechanism")}
        return SimpleNamespace(**vars(one), **told)

    return run
