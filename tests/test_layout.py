"""The import graph: no circle, and rooms that import only what lies below them."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "experiments", "analysis")
# From the ground up; rooms of one floor do not import each other.
FLOORS = (
    {"statistics", "command", "forked_kernel"},
    {"records"},
    {"rendering"},
    {"claims", "documents", "outputs"},
    {"selection"},
    {"standard"},
    {"experiments", "advise", "findings", "training_curve"},
    {"comparison"},
    {"across", "pages", "catalogue"},
    {"notebook"},
    {"warm"},
)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}


def _imports(path: Path) -> set[str]:
    """Modules of the repository that a file imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found & set(MODULES)


@cache
def graph() -> dict[str, set[str]]:
    return {module: _imports(path) for module, path in MODULES.items()}


def test_the_import_graph_has_no_circle():
    assert sum(map(len, graph().values())) > 1000
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_rooms_of_analysis_import_only_what_lies_below():
    floor = {room: place for place, rooms in enumerate(FLOORS) for room in rooms}
    for module, imported in graph().items():
        for other in imported:
            if module.startswith("analysis.") and other.startswith("analysis."):
                here, there = module.split(".")[1], other.split(".")[1]
                assert here == there or floor[there] < floor[here], (module, other)


def test_experiments_do_not_import_each_other():
    """But for what `as_published` says of streamed attention."""
    crossing = {
        (module.split(".")[2], other.split(".")[2])
        for module, imported in graph().items()
        for other in imported
        if re.match(r"analysis\.experiments\.\w+\.", module)
        and re.match(r"analysis\.experiments\.\w+\.", other)
        and module.split(".")[2] != other.split(".")[2]
    }
    assert crossing == {("as_published", "extreme")}


def test_models_know_nothing_of_what_measures_them_nor_this_of_the_analysis():
    for package, others in (
        ("models", ("experiments", "analysis")),
        ("experiments", ("analysis",)),
    ):
        for module, imported in graph().items():
            above = {other for other in imported if other.split(".")[0] in others}
            if module.split(".")[0] == package:
                compares = {"analysis.comparison.report", "analysis.pages.comparison_page"}
                allowed = compares if module == "experiments.__main__" else set()
                assert above <= allowed, (module, above)
    for path in (ROOT / "models").rglob("*"):
        if path.suffix in (".py", ".md", ".json"):
            assert not re.search(r"\bexperiments[./]|\banalysis[./]", path.read_text()), path


def test_text_is_read_and_written_as_utf_8_whatever_the_locale():
    """`/proc` has no other text than the kernel's."""
    for module, path in MODULES.items():
        if module.startswith("models."):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (kind := _opens_text(node)):
                assert any(word.arg == "encoding" for word in node.keywords), (
                    f"{path}, line {node.lineno}: {kind} without encoding"
                )


def _opens_text(node: ast.Call) -> str | None:
    """What opens text as the locale has it, unless `encoding` is given."""
    if isinstance(node.func, ast.Name) and node.func.id == "open":
        constants = [one.value for one in node.args if isinstance(one, ast.Constant)]
        is_text = not any(one[-1] == "b" or one.startswith("/proc/") for one in constants)
        return "open" if is_text else None
    if isinstance(node.func, ast.Attribute):
        places = {"read_text": 0, "write_text": 1}
        if len(node.args) == places.get(node.func.attr):
            return node.func.attr
        if node.func.attr in ("run", "Popen", "check_output"):
            return "text=True" if any(word.arg == "text" for word in node.keywords) else None
    return None


def test_the_analysis_starts_without_torch():
    """Each of its processes would wait seconds for it, and a pipeline starts dozens."""
    names = sorted(module for module in MODULES if module.startswith("analysis."))
    names = [name for name in names if not name.endswith("__main__")]
    script = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
