"""Command line: `python -m analysis.claims`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.claims.completeness import missing
from analysis.claims.load import load
from analysis.claims.schema import ClaimsError
from analysis.claims.verdicts import counts, evaluate, to_csv, to_json
from analysis.records import frame as records
from analysis.rendering.text import write


def main(arguments: list[str] | None = None) -> int:
    """Judge every claim; returns the exit status.

    1 for unusable input, with one line on stderr. 1 also where a claim has no verdict or a verdict
    no evidence, with a line each; the files are written all the same.
    """
    parser = argparse.ArgumentParser(prog="python -m analysis.claims", description=main.__doc__)
    parser.add_argument("--claims", type=Path, default=Path("paper/claims.yaml"))
    parser.add_argument("--out", type=Path, default=Path("build/claims.json"))
    parser.add_argument("roots", nargs="*", metavar="RECORD_ROOT", help="folders or files")
    options = parser.parse_args(arguments)
    try:
        claims_file = load(options.claims)
        verdicts = evaluate(claims_file, records.load(*options.roots))
        write(options.out, to_json(claims_file, verdicts))
        write(options.out.with_suffix(".csv"), to_csv(verdicts))
    except (ClaimsError, records.RecordsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {options.out}: cannot write: {error.strerror}", file=sys.stderr)
        return 1
    for writeup, tally in counts(verdicts).items():
        print(f"{writeup}: " + ", ".join(f"{n} {verdict}" for verdict, n in tally.items()))
    lacking = missing(claims_file, verdicts)
    for line in lacking:
        print(f"error: {line}", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
