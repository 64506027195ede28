"""What the commands of `analysis` share: common arguments, unusable input as one line on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from experiments.console import in_words, printing, some_path


def parser(description: str, out: str | None = None, records: bool = False):
    """An ArgumentParser with --out (default: `out`), and the folders of records as `roots`."""
    made = argparse.ArgumentParser(description=description)
    if out is not None:
        made.add_argument("--out", type=some_path, default=Path(out), help=f"default: {out}")
    if records:
        made.add_argument(
            "roots",
            nargs="*",
            type=some_path,
            metavar="ROOT",
            help="records (default: all there are)",
        )
    return made


def command(name: str, *errors: type[Exception]) -> Callable:
    """Decorates `main(arguments)`, which returns an exit status or, where all went well, None.

    One of `errors`, or an OSError, becomes the line `name: message` on stderr and status 1.
    """

    def decorate(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
        @printing
        @wraps(main)
        def run(arguments: list[str] | None = None) -> int:
            try:
                return main(arguments) or 0
            except BrokenPipeError:
                raise
            except (*errors, OSError) as error:
                print(f"{name}: {in_words(error)}", file=sys.stderr)
                return 1

        return run

    return decorate
