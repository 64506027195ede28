"""The audit of the write-ups: every line is accounted for, every claim stands on one of them."""

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from analysis import claims

AUDIT = yaml.safe_load((Path(__file__).parent / "claims_audit.yaml").read_text())
BOOK = claims.load(Path(__file__).parents[2] / "paper" / "claims.yaml")
IDS = {
    name: [c.id.removeprefix(f"{name}.") for c in BOOK.claims.values() if c.writeup == name]
    for name in BOOK.writeups
}


def _matching(name: str, patterns: list[str]) -> list[str]:
    found = []
    for pattern in patterns:
        own = [one for one in IDS[name] if fnmatchcase(one, pattern)]
        assert own, f"{name}: {pattern}: no such claim"
        found += own
    return found


def _lines(place: dict) -> range:
    first, _, last = str(place["lines"]).partition("-")
    return range(int(first), int(last or first) + 1)


def test_every_write_up_is_audited():
    assert sorted(AUDIT) == sorted(BOOK.writeups)


@pytest.mark.parametrize("name", AUDIT)
def test_every_line_is_accounted_for_once_and_in_order(name):
    lines = [line for place in AUDIT[name]["places"] if "lines" in place for line in _lines(place)]
    assert lines == list(range(1, AUDIT[name]["lines"] + 1))


@pytest.mark.parametrize("name", AUDIT)
def test_every_statement_has_a_claim_and_every_claim_a_place(name):
    placed = Counter()
    for place in AUDIT[name]["places"]:
        assert len({"claims", "again", "nothing"} & set(place)) == 1, place
        if "again" in place:
            assert _matching(name, place["again"])
        if "claims" in place:
            found = _matching(name, place["claims"])
            assert len(found) >= place.get("statements", 1), place
            placed.update(found)
    assert sorted(placed) == sorted(IDS[name])
    assert set(placed.values()) == {1}


def test_how_many_statements_each_write_up_makes():
    statements = {
        name: sum(place.get("statements", 0) for place in audit["places"])
        for name, audit in AUDIT.items()
    }
    assert statements == {
        "comprehensive": 183,
        "dilated": 97,
        "block_sparse": 92,
        "ring": 68,
        "overview": 33,
    }
