"""Which code a variant's numbers depend on, as one digest of what its files mean.

Starting from the variant's modules and from the measuring procedure, imports within
the repository are followed, those inside functions too, so that an edit to one
variant's file changes that variant's digest and no other. Words and layout count
for nothing: see `experiments.meaning`.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from experiments.meaning import meaning
from experiments.procedures import PROCEDURES, choose
from models.kernels import tile_tables
from models.registry import VARIANTS

ROOT = Path(__file__).parent.parent
# The registry names every variant; of it, only the variant's own entry counts.
_REGISTRY = "models.registry"
# Backends that may run a Triton kernel. Another, named, never falls back to one: new
# tiles leave its numbers as they are.
_KERNELS, _BY_KERNEL = "models.kernels", ("auto", "triton", "triton-tf32", "gluon")


def code_digest(variant: str, procedure: str | None = None) -> str:
    """16 hex digits over the sources behind `variant`, its registry entry and torch's version.

    procedure: how it is measured, by name; None for the only one that can measure it (ValueError
    where there are several).
    """
    entry = VARIANTS[variant]
    sha = hashlib.sha256(repr((entry.entry, sorted(entry.options.items()))).encode())
    sha.update(repr((entry.pattern_class, entry.multihead, _version("torch"))).encode())
    for path in sources(variant, procedure):
        sha.update(path.relative_to(ROOT).as_posix().encode())
        sha.update(_meaning(_as_used(path)))
    return sha.hexdigest()[:16]


def _meaning(path: Path) -> bytes:
    return meaning(path.suffix, path.read_bytes())


def _as_used(path: Path) -> Path:
    """The file itself, but for a table of tiles the one in its place: see `tile_tables`."""
    is_table = path.parent == ROOT / "models/kernels" and path.suffix == ".json"
    return tile_tables.path(path.stem) if is_table and path.stem in tile_tables.overlaid() else path


def sources(variant: str, procedure: str | None = None) -> list[Path]:
    """The repository's files behind a variant's numbers, sorted; arguments as of `code_digest`."""
    entry = VARIANTS[variant]
    by_kernel = entry.options.get("backend", "auto") in _BY_KERNEL
    passed_over = (_REGISTRY,) if by_kernel else (_REGISTRY, _KERNELS)
    return _reached([*entry.modules, PROCEDURES[procedure or choose(variant)].module], passed_over)


def _reached(
    modules: Iterable[str], passed_over: tuple[str, ...] = (), packages: bool = False
) -> list[Path]:
    """The files of modules and of all that they import within the repository, sorted.

    passed_over: the beginnings of names of modules that are not followed. packages: follow the
    `__init__.py` of packages too.
    """
    seen: dict[str, Path] = {}
    queue = list(modules)
    while queue:
        module = queue.pop()
        path = _path(module)
        if packages and not path.is_file():
            path = path.with_suffix("") / "__init__.py"
        if module in seen or module.startswith(passed_over) or not path.is_file():
            continue
        seen[module] = path
        queue.extend(_imports(path.read_bytes()))
    found = list(seen.values())
    # A module's data lies beside it under its name: the tile table of a kernel.
    data = [path.with_suffix(kind) for path in found for kind in (".json", ".mplstyle")]
    return sorted([*found, *(path for path in data if path.is_file())])


def _path(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


@cache
def _imports(content: bytes) -> tuple[str, ...]:
    found = []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from package import module` or `from package.module import name`.
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return tuple(name for name in found if (ROOT / name.partition(".")[0]).is_dir())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def modules_digest(*modules: str, data: Iterable[str] = ()) -> str:
    """16 hex digits over modules, all that they import here, and files that match `data`."""
    sha = hashlib.sha256()
    files = {path for pattern in data for path in ROOT.glob(pattern)}
    for path in sorted({*files, *_reached(modules, packages=True)}):
        sha.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + _meaning(path))
    return sha.hexdigest()[:16]
