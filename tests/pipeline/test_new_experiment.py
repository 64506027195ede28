"""A new experiment, made by CONTRIBUTING.md to the letter: what it takes, and that it is built."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from analysis.documents.paper import compile_paper
from tests.pipeline.conftest import ROOT, fresh_copy, planned, snakemake

pytestmark = pytest.mark.pipeline
NAME = "written_out"
SMOKE = ("--config", "tier=smoke", "device=cpu")
TARGETS = [
    f"build/notebooks/{NAME}.html",
    f"build/tables/{NAME}-worth.csv",
    f"build/figures/{NAME}-time.csv",
    f"build/writeups/{NAME}.md",
    "build/records.csv",
]


def files() -> dict[str, str]:
    """Path -> text of what CONTRIBUTING.md says to add, but for the notebook."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    steps = re.split(r"^(?=\d\. `)", text[text.index("## Add an experiment") :], flags=re.M)[1:]
    found = {}
    for step in steps:
        path = re.match(r"\d\. `([^`]+)`", step)[1]
        block = re.search(r"^   ```\w+\n(.*?)^   ```$", step, re.M | re.S)
        if block:
            found[path] = re.sub(r"^   ", "", block[1], flags=re.M)
    return {path.replace("NAME", NAME): body.replace("NAME", NAME) for path, body in found.items()}


def notebook() -> str:
    """Another experiment's notebook with this one's name, figure, table and numbers."""
    made = json.loads((ROOT / "analysis/notebooks/memory.ipynb").read_text())
    made["cells"] = made["cells"][:4]
    page = made["cells"][3]
    calls = ['page.figure("time")', 'page.table("worth")', "page.numbers()"]
    page["source"] = [
        "".join(page["source"][:-1]).replace("memory", NAME).rstrip() + "\n",
        calls[0],
    ]
    made["cells"] += [
        {**page, "id": f"more-{i}", "source": [call]} for i, call in enumerate(calls[1:])
    ]
    return json.dumps(made)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy with the new experiment alone."""
    folder = fresh_copy(tmp_path_factory.mktemp("new"))
    shutil.rmtree(folder / "results")
    for grid in (folder / "experiments").glob("*.yaml"):
        grid.unlink()
    added = files() | {f"analysis/notebooks/{NAME}.ipynb": notebook()}
    assert len(added) == 6
    for path, text in added.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    # The one line that an existing file gains.
    titles = folder / "paper/lib.typ"
    (line,) = re.findall(
        r"The line `(NAME: .+?)` in `titles`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    before = titles.read_text()
    titles.write_text(
        before.replace("#let titles = (\n", f"#let titles = (\n  {line.replace('NAME', NAME)}\n")
    )
    assert titles.read_text() != before
    # Measured in one process, where the workflow takes one each; one case is left to it.
    command = [sys.executable, "-m", "experiments", "run", NAME, "--tier", "smoke"]
    subprocess.run([*command, "--device", "cpu"], cwd=folder, check=True, capture_output=True)
    records = list((folder / "results").rglob("*.json"))
    assert len(records) == 6
    records[0].unlink()
    return folder


def test_it_is_measured_and_shown_everywhere(copy):
    assert planned(copy, "experiments", *SMOKE) == {"measure": 1}
    done = snakemake(copy, "--cores", "2", *TARGETS, *SMOKE)
    assert done.returncode == 0, done.stdout
    table = (copy / TARGETS[1]).read_text().splitlines()
    assert table[0].startswith("System,Length,Time (ms),Time (ms) low,Time (ms) high,Over dense")
    assert len(table) == 1 + 6
    figure = (copy / TARGETS[2]).read_text()
    assert figure.count("\n") > 6 and "256" in figure
    writeup = (copy / TARGETS[3]).read_text()
    assert "6 cases were timed" in writeup and "| System | Length |" in writeup
    assert planned(copy, *TARGETS, *SMOKE) == {}
    # Its section, without the paper around it, which looks up the numbers of all experiments.
    section = copy / "paper/one-section.typ"
    section.write_text(f'#import "lib.typ": *\n#experiments\n#include "sections/{NAME}.typ"\n')
    assert compile_paper(copy / "build", section).startswith(b"%PDF")


def test_its_table_is_its_own(copy):
    """An edit to one experiment's table executes one notebook, and measures nothing."""
    path = copy / f"analysis/experiments/{NAME}/tables.py"
    path.write_text(path.read_text().replace("Over dense", "Against dense"))
    plan = planned(copy, *TARGETS, *SMOKE)
    assert plan[f"notebook_{NAME}"] == 1 and not any(rule.startswith("measure") for rule in plan)
