"""Which code a variant's numbers depend on, as one digest of what its files mean.

Starting from the variant's modules and from the measuring procedure, imports within
the repository are followed, those inside functions too, so that an edit to one
variant's file changes that variant's digest and no other. Words and layout count
for nothing: see `experiments.meaning`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from experiments.meaning import code, meaning
from experiments.procedures import PROCEDURES, choose
from models.kernels import tile_tables
from models.registry import VARIANTS

ROOT = Path(__file__).parent.parent
# The registry names every variant; of it, only the variant's own entry counts.
_REGISTRY = "models.registry"
# What is beside a module under its name, and belongs to it.
_DATA = (".json", ".mplstyle", ".yaml")
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
    sha.update(repr((entry.pattern_class, entry.multihead, release("torch"))).encode())
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
    measuring = [PROCEDURES[procedure or choose(variant)].module, "experiments.ceilings"]
    return reached([*entry.modules, *measuring], passed_over)


def reached(
    modules: Iterable[str], passed_over: tuple[str, ...] = (), packages: bool = False
) -> list[Path]:
    """The files of modules and of all that they import within the repository, sorted.

    passed_over: the beginnings of names of modules that are not followed. packages: follow the
    `__init__.py` of packages too.
    """
    found: dict[str, str | None] = {}
    queue = list(modules)
    while queue:
        module = queue.pop()
        if module in found or module.startswith(passed_over):
            continue
        found[module] = path = _path(module, packages)
        if path:
            with open(path, "rb") as opened:
                queue.extend(_imports(opened.read()))
    files = [path for path in found.values() if path]
    # A module's data lies beside it under its name: the tile table of a kernel.
    data = [path.removesuffix(".py") + kind for path in files for kind in _DATA]
    return sorted(Path(path) for path in [*files, *filter(os.path.isfile, data)])


def _path(module: str, packages: bool) -> str | None:
    """The file of a module here, or where asked for of a package; None where there is none."""
    stem = f"{ROOT}/{module.replace('.', '/')}"
    names = (f"{stem}.py", f"{stem}/__init__.py") if packages else (f"{stem}.py",)
    return next(filter(os.path.isfile, names), None)


@cache
def _imports(content: bytes) -> tuple[str, ...]:
    _, names = code(content)
    return tuple(name for name in names if (ROOT / name.partition(".")[0]).is_dir())


@cache
def release(package: str) -> str | None:
    """The version of an installed package, without what a build adds to it; None of no package."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def modules_digest(*modules: str, data: Iterable[str] = ()) -> str:
    """16 hex digits over modules, all that they import here, and files that match `data`."""
    sha = hashlib.sha256()
    files = {path for pattern in data for path in ROOT.glob(pattern)}
    for path in sorted({*files, *reached(modules, packages=True)}):
        sha.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + _meaning(path))
    return sha.hexdigest()[:16]
