"""What the commands of `analysis` share: common arguments, unusable input as one line on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path


def parser(description: str, out: str | None = None, records: bool = False):
    """An ArgumentParser with --out (default: `out`), and the folders of records as `roots`."""
    made = argparse.ArgumentParser(description=description)
    if out is not None:
        made.add_argument("--out", type=Path, default=Path(out), help=f"default: {out}")
    if records:
        made.add_argument(
            "roots", nargs="*", type=Path, metavar="ROOT", help="records (default: all there are)"
        )
    return made


def command(name: str, *errors: type[Exception]) -> Callable:
    """Decorates `main(arguments)`, which returns an exit status or, where all went well, None.

    One of `errors`, or an OSError, becomes the line `name: message` on stderr and status 1.
    """

    def decorate(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
        @wraps(main)
        def run(arguments: list[str] | None = None) -> int:
            try:
                return main(arguments) or 0
            except (*errors, OSError) as error:
                print(f"{name}: {_in_words(error)}", file=sys.stderr)
                return 1

        return run

    return decorate


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
