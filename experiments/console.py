"""What commands take, and print: in any locale, and to a reader that goes before the end."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from experiments import atomic_write

# What shells say of a program that SIGPIPE ended.
READER_GONE = 128 + signal.SIGPIPE
_ESCAPES = "backslashreplace"


def in_any_locale() -> None:
    """From now on, have characters that the locale does not have printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != _ESCAPES:
            stream.reconfigure(errors=_ESCAPES)


def printing(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Decorates `main(arguments)`, which returns an exit status and lets BrokenPipeError through.

    It prints in any locale. Where nobody reads on, as in `... | head -1`, the status is
    READER_GONE, and nothing is said; where what it printed cannot be written, 1. After Ctrl-C it is
    130, without a traceback.
    """

    @wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        in_any_locale()
        status = 0
        try:
            status = main(arguments)
            print(end="", flush=True)
            return status
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except OSError as error:
            is_gone = isinstance(error, BrokenPipeError)
            if not is_gone:
                with contextlib.suppress(OSError):
                    print(f"error: standard output: {error.strerror}", file=sys.stderr)
            # Else the interpreter, at its end, complains of what it could not write.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in (1, 2):
                os.dup2(nowhere, number)
            # What was stopped, by the end of its terminal too, says that.
            return status if status > 128 else READER_GONE if is_gone else 1

    return run


def some_text(text: str) -> str:
    """An argument that is not empty, as what a script's variable holds may be by mistake."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def some_path(text: str) -> Path:
    """A path; an empty one is refused: it would mean the folder that the command runs in."""
    return Path(some_text(text))


def folder(text: str) -> Path:
    """A folder, or where one can be made."""
    path = some_path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is a file, expected a folder")
    return path


def in_words(error: Exception) -> str:
    """An error as one line; of the system's, the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {atomic_write.in_words(error)}"
    return str(error)
