"""Records in which every free text says one hostile thing, and all that is made of them."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import nbformat
from nbformat import v4
from pydantic import BaseModel

from analysis import catalogue
from analysis.across import overview, provenance
from analysis.advise import recommendations
from analysis.claims import __main__ as claims
from analysis.documents import writeups
from analysis.findings import __main__ as findings
from analysis.notebook import Page
from analysis.pages import comparison_page, index_page, ledger_page, numbers_page, results_page
from analysis.records import files, frame
from analysis.rendering import numbers
from analysis.rendering.text import write
from analysis.selection import published
from tests.analysis import synthetic

# What would run, be read, or be set as something else: in a page, a spreadsheet, Markdown, LaTeX,
# Typst, mathematics and templates.
TEXT = (
    "=cmd|' /C calc'!A0 </script></style></title><script>ran = 1</script><img src=x onerror=ran=1>"
    "<svg onload=ran=1> <!-- --> ]]> $x^2$ $\\frac$ **b** _i_ `c` ~~s~~ [a](javascript:ran=1) "
    "![a](x.png) \\input{x} #panic() {{ 7*7 }} {% x %} 50% & \"q\" 'a' -- x86_64 [1, 2](y)"
)
# Those that are one of a few words, or say which case it is.
NAMES = {"tier", "variant", "case", "status", "device_kind", "timed_by"}
# In a name of a file, which is short and has no folders.
IN_PATH = '=a <img src=x onerror=ran=1> $x^2$ [a](javascript:ran=1) `c` "q" #1?2%3'

DRAWN = ("overview", "variation", "comprehensive-time", "backends-rate", "ring-efficiency")


def saying_it(model: BaseModel) -> BaseModel:
    """`model` with TEXT before every text, as they must stay apart where they were."""
    changes = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel) and name != "case":
            changes[name] = saying_it(value)
        elif isinstance(value, str) and name not in NAMES:
            changes[name] = TEXT + value
    return model.model_copy(update=changes)


def records(root: Path) -> list[files.File]:
    """Of all experiments on a laptop and one on a card, with cases that were not timed.

    Not read from files: a stricter gate would let through fewer of them.
    """
    for experiment in published.EXPERIMENTS:
        synthetic.write(root, experiment)
    synthetic.write(root, "backends", failed={("dense-cudnn", 2048): "unsupported"})
    synthetic.write(root, "backends", "gpu", {("dense-eager", 32768): "oom"})
    # Nothing is there: no command here opens them.
    folder = frame.repository() / "results" / "published"
    return [
        files.File(saying_it(one.record), folder / IN_PATH / one.round / one.file.name)
        for one in files.read(root)
    ]


def build(root: Path, folder: Path) -> Path:
    """Everything that the pipeline makes of them, by the commands that make it, in `folder`.

    Of the experiments' figures only a few are drawn.
    """
    found = records(root)
    with (
        mock.patch.object(files, "read", return_value=found),
        mock.patch.object(frame, "load", return_value=frame.of_files(found)),
    ):
        for experiment in published.EXPERIMENTS:
            notebook(Page(experiment, records="auto", build=str(folder), machine="auto"))
        svg = {name: folder / "figures" / f"{name}.svg" for name in overview.FIGURES}
        for name, path in svg.items():
            if name in DRAWN:
                run(overview, "--figure", name, "--out", path)
        run(claims, "--out", folder / "claims.json")
        run(findings, "--out", folder / "reproduction")
        run(recommendations, "--out", folder / "tables" / "advice")
        parts = [*sorted((folder / "numbers").iterdir()), folder / "claims.json"]
        run(numbers, "--out", folder / "numbers.json", *parts)
        run(provenance, "--numbers", folder / "numbers.json", "--build", folder)
        run(results_page, "--out", folder / "results.html")
        run(comparison_page, "--out", folder / "compare.html")
        run(ledger_page, "--claims", folder / "claims.json", "--out", folder / "ledger.html")
        run(numbers_page, "--build", folder, "--out", folder / "numbers.html")
        for name in writeups.names():
            out = folder / "writeups" / f"{name}.md"
            run(writeups, name, "--build", folder, "--out", out)
        (folder / "figures" / "a#b?<i>%.svg").symlink_to(svg["overview"])
        run(index_page, "--build", folder, "--out", folder / "index.html")
    return folder


def run(module, *arguments) -> None:
    """A command, which ends well."""
    assert module.main([*map(str, arguments)]) == 0, module


def notebook(page: Page) -> None:
    """What an experiment's notebook shows, as papermill leaves it."""
    shown = []
    for name in catalogue.figures(page.experiment):
        if f"{page.experiment}-{name}" in DRAWN:
            shown.append({"image/svg+xml": page.figure(name).data})
        else:
            path = page.build / "figures" / f"{page.experiment}-{name}.svg"
            write(path, '<svg xmlns="http://www.w3.org/2000/svg"/>')
    shown += [
        {"text/markdown": page.table(name).data} for name in catalogue.tables(page.experiment)
    ]
    shown.append({"text/markdown": page.numbers().data})
    columns = ["machine", "device", "cpu", "reason", "backend", "path", "command"]
    rows = page.frame[columns].drop_duplicates()
    shown.append({"text/html": rows.to_html(), "text/plain": rows.to_string()})
    outputs = [v4.new_output("display_data", data=one) for one in shown]
    made = v4.new_notebook(cells=[v4.new_code_cell("page", outputs=outputs)])
    path = page.build / "notebooks" / f"{page.experiment}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(made, path)
