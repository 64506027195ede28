"""Names of a package that are imported on first use: the rest of it is read without torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def lazy_names(
    package: str, homes: dict[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Args:
        package: name of the package.
        homes: public name -> module that defines it.
    """
    names = sorted(homes)

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return __getattr__, lambda: names, names
