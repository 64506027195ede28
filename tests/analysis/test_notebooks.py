"""Notebooks: tracked without outputs, with parameters, and run on records and on bad input.

The frame that each shows and the plain figure that it makes of it are looked at by `opened`.
"""

import ast
import re
import sys
from dataclasses import dataclass
from itertools import takewhile
from xml.etree import ElementTree

import nbformat
import pandas as pd
import pytest
from IPython.display import SVG
from matplotlib import pyplot
from matplotlib.container import Container
from matplotlib.figure import Figure

from analysis import catalogue, notebook, outputs
from analysis.records.frame import RecordsError
from analysis.rendering import style
from analysis.selection import published
from experiments import grid

NOTEBOOKS = sorted(outputs.NOTEBOOKS.glob("*.ipynb"))
MIB = 2**20


def test_one_notebook_an_experiment():
    assert [path.stem for path in NOTEBOOKS] == sorted(published.EXPERIMENTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tracked_notebook_has_parameters_and_no_outputs(path):
    claims_file = nbformat.read(path, as_version=4)
    nbformat.validate(claims_file)
    code = [cell for cell in claims_file.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(f"{name} = " in tagged[0].source for name in ("records", "build", "machine"))


@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_a_notebook_writes_every_figure_and_table_of_its_experiment(experiment):
    written = set(outputs.written(experiment))
    for name in catalogue.figures(experiment):
        assert {f"figures/{experiment}-{name}.{form}" for form in outputs.FIGURE_FORMS} <= written
    for name in catalogue.tables(experiment):
        assert {f"tables/{experiment}-{name}.{form}" for form in outputs.TABLE_FORMS} <= written


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"records": ""}, "notebook parameter 'records': is ''"),
        ({"records": []}, r"notebook parameter 'records': is \[\]"),
        ({"build": ""}, "notebook parameter 'build': is ''"),
        ({"machine": None}, "notebook parameter 'machine': is None"),
        ({"records": "/nowhere/at-all"}, "/nowhere/at-all: no such records folder"),
        ({"machine": "toaster"}, "machine 'toaster': has no record"),
    ],
)
def test_a_bad_parameter_is_named(laptop_root, tmp_path, parameters, message):
    given = {"records": str(laptop_root), "build": str(tmp_path), "machine": "auto"} | parameters
    with pytest.raises(RecordsError, match=message) as error:
        notebook.Page("dilated", **given)
    # IPython shows this instead of a stack.
    assert error.value._render_traceback_() == [f"RecordsError: {error.value}"]


def test_a_drawing_is_shown_as_it_was_drawn(tmp_path):
    figure = Figure(figsize=(3, 2))
    figure.add_subplot(title="a < b & c").plot([1, 2, 4], label="one")
    path = style.save(figure, tmp_path / "drawn.svg")
    shown = notebook.Drawing(path)._repr_svg_()
    assert ElementTree.canonicalize(shown) == ElementTree.canonicalize(SVG(path).data)
    assert shown.startswith("<svg") and "\nL" not in shown


def test_a_build_folder_that_cannot_be_written_is_named(laptop_root, tmp_path):
    (tmp_path / "file").write_text("")
    page = notebook.Page(
        "dilated", records=str(laptop_root), build=str(tmp_path / "file"), machine="auto"
    )
    for show in (lambda: page.figure("time"), lambda: page.table("small"), page.numbers):
        with pytest.raises(RecordsError, match="file.*: cannot write there: Not a directory"):
            show()


def test_an_unknown_figure_or_table_is_named(laptop_root, tmp_path):
    page = notebook.Page("dilated", records=str(laptop_root), build=str(tmp_path), machine="auto")
    with pytest.raises(RecordsError, match="figure 'tme': expected one of time, memory"):
        page.figure("tme")
    with pytest.raises(RecordsError, match="table 'smal': expected one of small"):
        page.table("smal")


def test_a_notebook_runs_and_writes_what_it_says(laptop_root, tmp_path):
    """One of a kind: what the others show, and write, is what their cells call."""
    build, experiment = tmp_path / "build", "extreme"
    assert notebook.main([experiment, "--build", str(build), str(laptop_root)]) == 0
    expected = {*outputs.written(experiment), f"notebooks/{experiment}.ipynb"}
    found = {path.relative_to(build).as_posix() for path in build.rglob("*") if path.is_file()}
    assert found == expected


def test_the_command_says_a_failure_in_one_line(tmp_path, capfd):
    arguments = ["dilated", "--build", str(tmp_path / "build"), str(tmp_path / "none")]
    assert notebook.main(arguments) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("dilated.ipynb: RecordsError: ")
    assert last.endswith("none: no such records folder or file")


def cells(experiment: str) -> dict[str, str]:
    """The source of each cell of a notebook, by id without the prefix that most of them share."""
    found = nbformat.read(outputs.NOTEBOOKS / f"{experiment}.ipynb", as_version=4).cells
    return {re.sub(r"^.*?-(?=rows|plot)", "", cell.id): cell.source for cell in found}


@dataclass(frozen=True)
class Opened:
    """What a notebook shows before its first table: its frame, and its plain figure, rendered."""

    rows: pd.DataFrame
    figure: Figure

    @property
    def points(self) -> dict[str, list[tuple[float, float]]]:
        """Label -> (x, y) of what the legend names, as far as it is drawn."""
        found = {}
        for one, label in zip(*self.figure.axes[0].get_legend_handles_labels(), strict=True):
            line = one[0] if isinstance(one, Container) else one
            drawn = [(x, y) for x, y in zip(*line.get_data(), strict=True) if y == y]
            found |= {label: drawn} if drawn else {}
        return found


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """(experiment, frame, change) -> `Opened`: its cells from the first on are executed here.

    change: a text in the cell of the figure, and what it becomes.
    """

    def run(experiment: str, frame: pd.DataFrame, change: tuple[str, str] = ("", "")) -> Opened:
        monkeypatch.setattr(notebook.sources, "load", lambda *_: frame)
        book = nbformat.read(outputs.NOTEBOOKS / f"{experiment}.ipynb", as_version=4)
        names, shown = {}, {}
        for cell in takewhile(lambda cell: not cell.id.endswith("-plot-try"), book.cells):
            if cell.cell_type == "code":
                is_plot = cell.id.endswith("-plot")
                body = ast.parse(cell.source.replace(*change) if is_plot else cell.source).body
                last = body.pop() if isinstance(body[-1], ast.Expr) else None
                exec(compile(ast.Module(body, []), cell.id, "exec"), names)
                if last is not None:
                    code = compile(ast.Expression(last.value), cell.id, "eval")
                    shown[cell.id.split("-")[-1]] = eval(code, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {"build": str(tmp_path)}
        names["fig"].canvas.draw()
        return Opened(shown["rows"], names["fig"])

    monkeypatch.setattr(sys, "path", [*sys.path])
    pyplot.switch_backend("agg")
    yield run
    pyplot.close("all")


def one(frame: pd.DataFrame, experiment: str, **fields) -> pd.Series:
    """The row of an experiment with these fields."""
    rows = frame[frame["experiment"] == experiment]
    for name, value in fields.items():
        rows = rows[rows[name.rstrip("_")] == value]
    (row,) = (row for _, row in rows.iterrows())
    return row


def of_dilated(frame):
    row = one(frame, "dilated", system="dense", seq_len=4096, heads=8, is_causal=True)
    return "dense", 4096, row["median_ms"]


def of_block_sparse(frame):
    at = {"seq_len": 8192, "is_causal": False, "pass_": "forward", "batch": 1}
    sparse = one(frame, "block_sparse", sparsity=0.95, pattern="dilated", **at)
    dense = one(frame, "block_sparse", system="dense", **at)
    return "8192 tokens", 95, dense["median_ms"] / sparse["median_ms"]


def of_ring(frame):
    row = one(frame, "ring", system="ring-distributed/p4-simulated", seq_len=8192)
    return "8192 tokens, simulated", 4, row["median_ms"]


def of_extreme(frame):
    lengths = (2048, 4096, 8192, 16384, 32768)
    at = {"seq_len": 262144, "segment_lengths": lengths}
    row = one(frame, "extreme", system="dilated-streamed", **at)
    return "dilated-streamed", 262144, 1000 * row["median_ms"] / 262144


def of_memory(frame):
    at = {"seq_len": 4096, "pass_": "forward"}
    row = one(frame, "memory", system="dilated-gather", **at)
    return "dilated-gather", 4096, row["peak_memory_bytes"] / MIB


def of_backends(frame):
    at = {"seq_len": 1024, "dtype": "float32"}
    own = one(frame, "backends", system="dense-math", **at)
    fastest = one(frame, "backends", system="dense-flash", **at)
    return "dense-math", 1024, own["median_ms"] / fastest["median_ms"]


def of_comprehensive(frame):
    at = {"seq_len": 8192, "batch": 1}
    base = one(frame, "comprehensive", system="dilated-gather", **at)
    own = one(frame, "comprehensive", system="dilated-sdpa", **at)
    old = published.value("comprehensive", "dilated-sdpa", 1, 8192, "speedup")
    return "dilated-sdpa", old, base["median_ms"] / own["median_ms"]


def of_as_published(frame):
    row = one(frame, "as_published", variant="published-over-heads", seq_len=8192)
    return "published-over-heads", row["deviation_relative_rms"], 1000 * row["median_ms"] / 8192


def of_quality(frame):
    rows = frame[frame["recipe"].astype(str).str.startswith("recall")]
    row = one(rows[rows["seq_len"] == rows["seq_len"].max()], "quality", system="dense")
    ends = [training.evaluations[-1].accuracy for training in row["trainings"]]
    return "dense", row["median_ms"], sum(ends) / len(ends)


# Of every experiment a point of its plain figure, worked out from the frame: its label, x and y.
POINTS = {
    "dilated": of_dilated,
    "block_sparse": of_block_sparse,
    "ring": of_ring,
    "extreme": of_extreme,
    "memory": of_memory,
    "backends": of_backends,
    "comprehensive": of_comprehensive,
    "as_published": of_as_published,
    "quality": of_quality,
}


@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_a_notebook_shows_its_frame_and_a_figure_of_it(experiment, laptop, opened):
    source, found = cells(experiment), opened(experiment, laptop)
    named = set(re.findall(r"`(\w+)`", source["rows-words"])) - {"own"}
    assert 0 < len(found.rows) <= 10 and len(named & set(laptop.columns)) > 0
    assert named <= set(found.rows.columns)
    (ax,) = found.figure.axes
    assert ax.get_xlabel() and ax.get_ylabel() and found.figure.legends
    label, *point = POINTS[experiment](laptop)
    assert pytest.approx(tuple(point)) in found.points[label]


@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_a_reader_can_alter_the_figure(experiment, laptop, opened):
    """It is short and plain, and what the notebook asks to try makes another figure."""
    source = cells(experiment)
    assert len(source["plot"].splitlines()) <= 25
    assert re.findall(r"\bimport (\S+)", source["plot"]) == ["matplotlib.pyplot"]
    assert not re.search(r"\b(page|analysis|published)\.", source["plot"])
    asked = re.match(r"\*\*To try\.\*\* Change `(.+?)` to `(.+?)`.*\?", source["plot-try"])
    assert source["plot"].count(asked[1]) == 1
    before, after = opened(experiment, laptop), opened(experiment, laptop, asked.groups())
    assert after.points and after.points != before.points


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_a_notebook_makes_do_with_few_records(experiment, laptop, smoke, nothing, opened):
    quick = {f"{task.case.name}.json" for task in grid.tasks("laptop", quick=True)}
    assert opened(experiment, laptop[laptop["path"].str.split("/").str[-1].isin(quick)]).points
    opened(experiment, smoke)
    found = opened(experiment, nothing)
    assert found.rows.empty and "measured here" in found.figure.axes[0].get_title()


def test_rows_are_the_timed_cases_of_the_reported_machine(laptop, nothing, monkeypatch, tmp_path):
    other = pd.concat([laptop.iloc[::2], nothing.iloc[1::2]]).assign(machine="other")
    two_machines = pd.concat([laptop, other], ignore_index=True).assign(origin="published")

    def rows(frame, machine):
        monkeypatch.setattr(notebook.sources, "load", lambda *_: frame)
        given = {"records": "auto", "build": str(tmp_path), "machine": machine}
        return notebook.Page("extreme", **given).rows()

    for machine, expected in (("auto", laptop), ("other", laptop.iloc[::2])):
        found = rows(two_machines, machine)
        assert [*found["path"]] == [*expected[expected["experiment"] == "extreme"]["path"]]
        assert [*found.index] == [*range(len(found))]
    found = rows(nothing, "auto")
    assert found.empty and [*found.columns] == [*nothing.columns]
