"""Command line: `python -m analysis.claims`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis import records
from analysis.claims.book import load
from analysis.claims.complete import wanting
from analysis.claims.verdicts import counts, evaluate, to_csv, to_json
from analysis.claims.vocabulary import ClaimsError
from analysis.text import write


def main(arguments: list[str] | None = None) -> int:
    """Judge every claim; returns the exit status.

    1 for unusable input, with one line on stderr, and where a claim wants a verdict or a verdict
    its evidence, with a line each: the files are written all the same.
    """
    parser = argparse.ArgumentParser(prog="python -m analysis.claims", description=main.__doc__)
    parser.add_argument("--claims", type=Path, default=Path("paper/claims.yaml"))
    parser.add_argument("--out", type=Path, default=Path("build/claims.json"))
    parser.add_argument("roots", nargs="*", metavar="RECORD_ROOT", help="folders or files")
    options = parser.parse_args(arguments)
    try:
        book = load(options.claims)
        verdicts = evaluate(book, records.load(*options.roots))
        write(options.out, to_json(book, verdicts))
        write(options.out.with_suffix(".csv"), to_csv(verdicts))
    except (ClaimsError, records.RecordsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {options.out}: cannot write: {error.strerror}", file=sys.stderr)
        return 1
    for writeup, tally in counts(verdicts).items():
        print(f"{writeup}: " + ", ".join(f"{n} {verdict}" for verdict, n in tally.items()))
    faults = wanting(book, verdicts)
    for line in faults:
        print(f"error: {line}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
