"""`python -m analysis.advise`: which system to take at a setting, from the records."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys

from analysis.advise import Question, Refused, advise
from analysis.advise.question import BY
from analysis.advise.words import in_words
from analysis.command import command, parser
from analysis.records import frame as records
from experiments.case import DTYPES, PASSES

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def memory(text: str) -> float:
    """Bytes of `20GB`, `20GiB`, `512MB`; ValueError otherwise."""
    found = re.fullmatch(r"([\d.]+)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(text)
    amount, prefix, binary = float(found[1]), found[2].upper(), found[3]
    return amount * (1024 ** " KMGT".index(prefix or " ") if binary else _UNITS[prefix])


@command("advise", Refused, ValueError)
def main(arguments: list[str] | None = None) -> int:
    """Print the answer; returns 0, or 1 where nothing fits or there is no answer (see stderr)."""
    options = _parser().parse_args(arguments)
    question = Question(
        options.seq_len,
        options.heads,
        options.head_dim,
        options.pass_,
        options.batch,
        options.dtype,
        options.causal,
        options.device,
        options.memory,
        options.by,
    )
    answer = advise(records.load(*options.roots), question)
    print(as_json(answer) if options.json else in_words(answer), end="")
    return 0 if answer.ranked else 1


def as_json(answer) -> str:
    """The whole answer; numbers that are not known are null, as the interval of one round."""
    # The samples lie in the records, which are named.
    ranked = tuple(dataclasses.replace(option, point=None) for option in answer.ranked)
    plain = dataclasses.asdict(dataclasses.replace(answer, ranked=ranked))
    for option in plain["ranked"]:
        del option["point"]
    return json.dumps(_known(plain), indent=1) + "\n"


def _known(value):
    if isinstance(value, dict):
        if value.get("confidence") == 0:
            value = value | {"low": None, "high": None}
        return {key.rstrip("_"): _known(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _parser() -> argparse.ArgumentParser:
    options = parser(
        "Rank the systems at a setting by measured or interpolated time and memory.", records=True
    )
    add = options.add_argument
    add("--device", help="part of a device's name or machine's id (default: the reporting machine)")
    add("--seq-len", type=int, required=True, help="tokens")
    add("--heads", type=int, default=8)
    add("--head-dim", type=int, default=64)
    add("--batch", type=int, default=1)
    add("--pass", dest="pass_", choices=PASSES, default="forward")
    add("--dtype", choices=DTYPES, help="default: the one that most systems were measured in")
    add(
        "--causal",
        action=argparse.BooleanOptionalAction,
        help="default: what most systems were measured with",
    )
    add("--memory", type=memory, help="limit: 20GB, 16GiB (default: what the device has)")
    add("--by", choices=BY, default="time", help="what is ranked by")
    add("--json", action="store_true", help="the whole answer, with paths and commands")
    return options


if __name__ == "__main__":
    sys.exit(main())
