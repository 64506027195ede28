"""Command line: `python -m analysis.claims`."""

from __future__ import annotations

import sys
from pathlib import Path

from analysis.claims.completeness import missing
from analysis.claims.load import load
from analysis.claims.schema import CLAIM, SIDES, ClaimsError
from analysis.claims.verdicts import counts, evaluate, to_csv, to_json
from analysis.command import command, parser
from analysis.records import frame
from analysis.rendering.text import write


@command("claims", ClaimsError, frame.RecordsError)
def main(arguments: list[str] | None = None) -> int:
    """Judge every claim; returns the exit status.

    1 for unusable input, with one line on stderr. 1 also where a claim has no verdict or a verdict
    no evidence, with a line each; the files are written all the same.
    """
    options = parser(main.__doc__, "build/claims.json", records=True)
    options.add_argument("--claims", type=Path, default=Path("paper/claims.yaml"))
    given = options.parse_args(arguments)
    claims_file = load(given.claims)
    verdicts = evaluate(claims_file, frame.vouched(frame.load(*given.roots)))
    write(given.out, to_json(claims_file, verdicts))
    write(given.out.with_suffix(".csv"), to_csv(verdicts))
    for writeup, tally in counts(verdicts).items():
        print(f"{writeup}: {tally[CLAIM]} claims")
        for side in SIDES:
            told = ", ".join(f"{n} {verdict}" for verdict, n in tally[side].items() if n)
            print(f"  {side.replace('_', ' ')}: {told}")
    lacking = missing(claims_file, verdicts)
    for line in lacking:
        print(f"claims: {line}", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
