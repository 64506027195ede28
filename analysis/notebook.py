"""What the notebooks share: parameters checked, records read, results shown and written.

    python -m analysis.notebook EXPERIMENT [--out FILE] [--build DIR] [--machine ID] [RECORDS ...]

executes one by papermill, with a message of one line where papermill shows its stack, in a kernel
that is a fork: it has imported already what this process has.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from analysis import catalogue
from analysis.forked_kernel import kernel_manager
from analysis.records import frame as sources
from analysis.records.frame import RecordsError
from analysis.rendering import numbers, style, table
from analysis.selection import published, views
from experiments.atomic_write import in_words

# A notebook would look for mathematics in the cells of a frame, which are data.
pd.set_option("display.html.use_mathjax", False)


class Drawing:
    """An SVG as a notebook shows it: IPython's class would parse all of it, which takes longer."""

    def __init__(self, path: Path):
        text = path.read_text(encoding="utf-8")
        # A break in the data of a path is a space; a notebook would hold each line by itself.
        self.data = re.sub(r'\n(?=[CLMQz"])', " ", text[text.index("<svg") :]).rstrip()

    def _repr_svg_(self) -> str:
        return self.data

    def __repr__(self) -> str:
        return "a figure"


class Page:
    """One experiment, ready to be shown: `figure`, `table` and `numbers` show and write.

    `rows` has its measurements, for figures of one's own.

    records: "auto" (all published and local ones), or folders and files: text with spaces
    between them, or a list; relative ones start at the repository root, as `build` does.
    machine: "auto" or the id of the machine that the numbers are from.
    Raises RecordsError naming the parameter, folder or file that cannot be used.
    """

    def __init__(self, experiment: str, *, records, build: str, machine: str):
        root = sources.repository()
        self.experiment = _one_of("experiment", experiment, published.EXPERIMENTS)
        self.build = root / _text("build", build)
        # As other commands call them, which start there.
        self.frame = sources.load(*_paths(Path() if root == Path.cwd() else root, records))
        rows = sources.of_experiment(self.frame, experiment)
        self.machine = _text("machine", machine)
        sources.reporting_machine(rows, self.machine)

    def rows(self) -> pd.DataFrame:
        """The experiment's timed cases on the reported machine, one a row: a frame to work with.

        Columns as in `analysis.records.frame.load`. Smoke cases only where there are no others.
        """
        rows = views.view(self.frame, self.experiment, self.machine).rows
        return rows[rows["status"] == "ok"].reset_index(drop=True)

    def figure(self, name: str) -> Drawing:
        """Draw figure `name`, write it to `figures/` of the build folder, and show it."""
        known = catalogue.figures(self.experiment)
        draw = known[_one_of("figure", name, known)]
        path = self.build / "figures" / f"{self.experiment}-{name}.svg"
        with _writing(path):
            style.save(draw(self.frame, self.experiment, self.machine), path)
        return Drawing(path)

    def table(self, name: str) -> Markdown:
        """Make table `name`, write it to `tables/` of the build folder, and show it."""
        known = catalogue.tables(self.experiment)
        made = known[_one_of("table", name, known)](self.frame, self.machine)
        stem = self.build / "tables" / f"{self.experiment}-{name}"
        with _writing(stem):
            return Markdown(table.save(made, stem))

    def numbers(self) -> Markdown:
        """Write every number of the experiment to `numbers/` of the build folder."""
        found = catalogue.numbers(self.frame, self.experiment, self.machine)
        path = self.build / "numbers" / f"{self.experiment}.json"
        with _writing(path):
            numbers.save(found, path)
        measured = sum(map(numbers.is_measured, found.values()))
        return Markdown(f"{measured} numbers in `{path.name}`")


def _paths(root: Path, value) -> list[Path]:
    if value == "auto":
        return []
    parts = value.split() if isinstance(value, str) else list(value or [])
    if not parts:
        raise RecordsError(
            f"notebook parameter 'records': is {value!r}, expected 'auto', or folders or files"
        )
    return [root / part for part in parts]


def _text(name: str, value) -> str:
    if not isinstance(value, str) or not value:
        raise RecordsError(f"notebook parameter {name!r}: is {value!r}, expected a text")
    return value


def _one_of(what: str, name: str, known: Iterable[str]) -> str:
    if name not in known:
        raise RecordsError(f"{what} {name!r}: expected one of {', '.join(known)}")
    return name


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordsError(f"{path.parent}: cannot write there: {in_words(error)}") from None


def main(arguments: list[str] | None = None) -> int:
    """Execute a notebook by papermill; returns the exit status, 1 with one line on stderr."""
    parser = argparse.ArgumentParser(description="Execute an experiment's notebook.")
    parser.add_argument("experiment", choices=published.EXPERIMENTS)
    parser.add_argument("--out", type=Path, help="default: BUILD/notebooks/EXPERIMENT.ipynb")
    parser.add_argument("--build", default="build")
    parser.add_argument("--machine", default="auto")
    parser.add_argument("records", nargs="*", help="folders or files; default: all there are")
    options = parser.parse_intermixed_args(arguments)
    name = f"{options.experiment}.ipynb"
    out = options.out or Path(options.build) / "notebooks" / name
    parameters = {
        "records": options.records or "auto",
        "build": options.build,
        "machine": options.machine,
    }
    with kernel_manager() as manager:
        return _execute(Path(__file__).parent / "notebooks" / name, out, parameters, manager)


def _execute(source: Path, out: Path, parameters: dict, manager: type) -> int:
    # Imported here: a notebook that imports this module is run by papermill already.
    from papermill.exceptions import PapermillException, PapermillExecutionError
    from papermill.execute import execute_notebook

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Written once, and not after each cell: Snakemake and readers look at it when it is done.
        execute_notebook(
            source,
            out,
            parameters,
            request_save_on_cell_execute=False,
            progress_bar=False,
            kernel_manager_class=manager,
        )
    except PapermillExecutionError as error:
        print(f"{source.name}: {error.ename}: {error.evalue}", file=sys.stderr)
    except (PapermillException, OSError) as error:
        print(f"{source.name}: {error}", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
