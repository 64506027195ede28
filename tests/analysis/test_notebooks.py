"""Notebooks: tracked without outputs, with parameters, and run on records and on bad input."""

import nbformat
import pytest

from analysis import catalogue, notebook, outputs
from analysis.records.frame import RecordsError
from analysis.selection import published

NOTEBOOKS = sorted(outputs.NOTEBOOKS.glob("*.ipynb"))


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
