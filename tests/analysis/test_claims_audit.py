"""The audit of the write-ups: every line is accounted for, every claim stands on one of them."""

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

AUDIT = yaml.safe_load((Path(__file__).parent / "claims_audit.yaml").read_text())


@pytest.fixture(scope="module")
def ids(claims_file):
    """Write-up -> ids of its claims, without its name."""
    return {
        name: [
            c.id.removeprefix(f"{name}.") for c in claims_file.claims.values() if c.writeup == name
        ]
        for name in claims_file.writeups
    }


def _matching(ids: dict[str, list[str]], name: str, patterns: list[str]) -> list[str]:
    found = []
    for pattern in patterns:
        own = [one for one in ids[name] if fnmatchcase(one, pattern)]
        assert own, f"{name}: {pattern}: no such claim"
        found += own
    return found


def _lines(place: dict) -> range:
    first, _, last = str(place["lines"]).partition("-")
    return range(int(first), int(last or first) + 1)


def test_every_write_up_is_audited(claims_file):
    assert sorted(AUDIT) == sorted(claims_file.writeups)


@pytest.mark.parametrize("name", AUDIT)
def test_every_line_is_accounted_for_once_and_in_order(name):
    lines = [line for place in AUDIT[name]["places"] if "lines" in place for line in _lines(place)]
    assert lines == list(range(1, AUDIT[name]["lines"] + 1))


@pytest.mark.parametrize("name", AUDIT)
def test_every_statement_has_a_claim_and_every_claim_a_place(ids, name):
    placed = Counter()
    for place in AUDIT[name]["places"]:
        assert len({"claims", "again", "nothing"} & set(place)) == 1, place
        if "again" in place:
            assert _matching(ids, name, place["again"])
        if "claims" in place:
            found = _matching(ids, name, place["claims"])
            assert len(found) >= place.get("statements", 1), place
            placed.update(found)
    assert sorted(placed) == sorted(ids[name])
    assert set(placed.values()) == {1}


@pytest.mark.parametrize("name", AUDIT)
def test_the_line_of_a_claim_is_one_of_its_place(claims_file, ids, name):
    """Each gives the lines where the write-up makes it; one at least is of its place here."""
    for place in AUDIT[name]["places"]:
        if "lines" not in place or "claims" not in place:
            continue
        for one in _matching(ids, name, place["claims"]):
            line = claims_file.claims[f"{name}.{one}"].line
            own = {n for part in line.split(", ") for n in _lines({"lines": part})}
            assert own & set(_lines(place)), f"{name}.{one}: line {line}, in {place['lines']}"


def test_how_many_statements_each_write_up_makes():
    statements = {
        name: sum(place.get("statements", 0) for place in audit["places"])
        for name, audit in AUDIT.items()
    }
    assert statements == {
        "comprehensive": 180,
        "dilated": 97,
        "block_sparse": 93,
        "ring": 68,
        "overview": 33,
        "longnet": 35,
    }
