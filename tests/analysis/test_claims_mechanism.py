"""What is told beside a verdict: how the figure arose, its records, its headline, what lacks."""

import csv
import io
import itertools
import json
from dataclasses import replace

import pandas as pd
import pytest

from analysis import claims
from analysis.claims import CARD, DIFFERS, FAILS, HOLDS, NOT_MEASURED, UNDECIDED
from analysis.claims import __main__ as cli
from analysis.claims.headlines import findings
from tests.analysis.claims_cases import AT, EMPTY, SPEEDUP, data, entry, load, noisy, row, times

SLOW, EQUAL = times(10, 20), times(10, 10)


def judged(tmp_path, *entries, rows=(), system=None, **sections):
    """sections: of the claims file, in place of its own."""
    content = data(*entries) | sections
    if system:
        content["systems"]["fast"]["mechanism"] = system
    claims_file = load(tmp_path, content)
    return claims_file, claims.evaluate(claims_file, pd.DataFrame(list(rows)) if rows else EMPTY)


def test_a_figure_that_does_not_hold_says_how_it_arose_or_that_nobody_knows(tmp_path):
    plain = entry(SPEEDUP, 2.0)
    for rows, verdict, mechanism in [
        (SLOW, FAILS, "unknown"),
        (EQUAL, FAILS, "unknown"),
        (times(20, 10), HOLDS, None),
        (noisy(SLOW), UNDECIDED, None),
        ((), NOT_MEASURED, None),
    ]:
        _, (found,) = judged(tmp_path, plain, rows=rows)
        assert (found.method.verdict, found.mechanism) == (verdict, mechanism)
        _, (found,) = judged(tmp_path, plain | {"mechanism": "slip"}, rows=rows)
        assert found.mechanism == (None if verdict == HOLDS else "slip")


def test_a_figure_that_the_method_gives_needs_no_mechanism_whatever_was_published(tmp_path):
    told = entry(SPEEDUP, 2.0) | {"mechanism": "slip", "see": ["tables/x-t"]}
    told |= {"history": {"verdict": FAILS, "reason": "it crashes"}}
    claims_file, (found,) = judged(tmp_path, told, rows=times(20, 10))
    assert (found.as_published.verdict, found.method.verdict) == (FAILS, HOLDS)
    assert found.mechanism is None
    assert claims.missing(claims_file, [found]) == []
    # Of the published code alone there is no method that could give it.
    code = {"kind": "about_code"}
    history = {"history": {"verdict": FAILS, "reason": "it is not"}}
    claims_file, (found,) = judged(tmp_path, entry(code) | history)
    assert (found.method, found.mechanism) == (None, "unknown")


def test_the_mechanism_of_a_system_is_that_of_its_times_alone(tmp_path):
    time = {"kind": "speedup", "system": "fast", "against": "core", "at": AT}
    growth = {"kind": "growth", "system": "fast", "at": {"batch": 2}, "lengths": [1024, 2048, 4096]}
    entries = [
        entry(time, 2.0, "a"),
        entry(time, 2.0, "b") | {"mechanism": "unknown"},
        entry(growth | {"quantity": "time", "at_most": 1}, None, "c"),
        entry(growth | {"quantity": "memory", "at_most": 1}, None, "d"),
        entry({"kind": "support", "system": "fast", "expect": "runs"}, None, "e"),
        entry({"kind": "restates", "of": "w.a"}, 2.0, "f"),
        entry({"kind": "ordering", "order": ["fast", "core"], "at": AT}, None, "g"),
    ]
    _, found = judged(tmp_path, *entries, system="slip")
    by_id = {v.id[2:]: v.mechanism for v in found}
    assert by_id == {
        "a": "slip",
        "b": "unknown",
        "c": "slip",
        "d": None,
        "e": None,
        "f": "slip",
        "g": None,
    }


def test_a_verdict_leads_to_its_records_their_commands_and_its_tables(tmp_path):
    first = entry(SPEEDUP, 2.0, "a") | {"see": ["tables/x-times", "figures/x-time"]}
    again = entry({"kind": "restates", "of": "w.a"}, 2.0, "b")
    claims_file, found = judged(tmp_path, first, again, rows=SLOW)
    for one in found:
        assert one.see == ["tables/x-times", "figures/x-time"]
        assert one.as_published.evidence == []
        assert one.method.evidence == [
            {
                "path": f"results/cpu-1/{variant}-2-1024.json",
                "machine": "cpu-1",
                "command": f"measure {variant} 1024",
            }
            for variant in ("dilated-sdpa", "dilated-gather")
        ]
    assert claims.missing(claims_file, found) == []
    line, restated = csv.DictReader(io.StringIO(claims.to_csv(found)))
    assert (line["line"], line["sort"], line["published"]) == ("7", "claim", "2.0")
    assert line["see"] == "tables/x-times figures/x-time"
    assert line["mechanism"] == "unknown"
    assert (line["as_published_verdict"], line["as_published_needs"]) == (NOT_MEASURED, "a case")
    assert (line["method_verdict"], line["method_stand_in"]) == (FAILS, "on a CPU")
    assert float(line["method_value"]) == pytest.approx(0.5)
    assert line["method_machines"] == "cpu-1"
    assert line["method_evidence"].split() == [e["path"] for e in found[0].method.evidence]
    assert line["method_command"] == "measure dilated-sdpa 1024"
    assert (line["consistency"], restated["consistency"]) == ("", HOLDS)
    written = json.loads(claims.to_json(claims_file, found))
    assert written["mechanisms"]["slip"]["explanation"] == "by slip."
    assert written["writeups"]["w"]["url"] == (
        "https://github.com/somebody/something/blob/0123abc/docs/w.md"
    )
    assert written["claims"][0]["method"]["evidence"] == found[0].method.evidence


def test_entries_are_counted_by_sort_and_claims_by_verdict(tmp_path):
    entries = [
        entry(SPEEDUP, 2.0, "a"),
        entry(SPEEDUP, 0.5, "b") | {"history": {"verdict": HOLDS, "reason": "it is logged"}},
        entry({"kind": "restates", "of": "w.a"}, 2.1, "c"),
        entry({"kind": "arithmetic", "right": "2"}, 2, "d"),
        entry({"kind": "context", "reason": "advice"}, None, "e"),
    ]
    _, found = judged(tmp_path, *entries, rows=SLOW)
    none = dict.fromkeys(claims.VERDICTS, 0)
    assert claims.counts(found) == {
        "w": {
            "claim": 2,
            "restatement": 1,
            "consistency": 1,
            "context": 1,
            "as_published": none | {HOLDS: 1, NOT_MEASURED: 1},
            "method": none | {HOLDS: 1, FAILS: 1},
            "agrees": {HOLDS: 1, FAILS: 1},
        }
    }


# --- What is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"evidence": []}, "method: judged by records, but names none"),
        (
            {"evidence": [{"path": "a", "machine": "b", "command": ""}]},
            "method: a record without path or command",
        ),
        ({"reason": " "}, "method: no reason"),
        ({"verdict": "maybe"}, "method: verdict 'maybe'"),
        ({"basis": "hearsay"}, "method: basis 'hearsay'"),
        ({"basis": "none"}, "method: does not hold without a basis"),
        ({"verdict": UNDECIDED, "basis": "none"}, "method: undecided without a basis"),
        ({"verdict": CARD, "basis": "none"}, "method: needs a card, but not what it needs"),
        ({"verdict": NOT_MEASURED, "basis": "none"}, "method: not measured, but not what it needs"),
    ],
)
def test_what_a_side_lacks_is_named_with_its_claim(tmp_path, change, text):
    told = entry(SPEEDUP, 2.0) | {"see": ["tables/x-t"]}
    claims_file, (found,) = judged(tmp_path, told, rows=SLOW)
    changed = replace(found, method=replace(found.method, **change))
    assert claims.missing(claims_file, [changed]) == [f"w.it: {text}"]


def test_what_a_verdict_lacks_is_named_with_its_claim(tmp_path):
    told = entry(SPEEDUP, 2.0) | {"see": ["tables/x-t"]}
    again = entry({"kind": "restates", "of": "w.it"}, 2.0, "again")
    code = entry({"kind": "about_code"}, None, "code")
    claims_file, (found, restated, published) = judged(tmp_path, told, again, code, rows=SLOW)

    def lacks(*verdicts):
        return claims.missing(claims_file, [found, restated, published, *verdicts])

    assert lacks() == []
    no_mechanism = "w.it: does not hold, and no mechanism says how it arose"
    assert lacks(replace(found, mechanism=None)) == [no_mechanism]
    assert lacks(replace(found, mechanism="magic")) == [no_mechanism]
    assert lacks(replace(found, see=[])) == [
        "w.it: method: judged by records, but `see` names no table or figure"
    ]
    assert lacks(replace(found, method=None)) == ["w.it: method: no verdict of a claim"]
    assert lacks(replace(found, consistency=restated.consistency)) == [
        "w.it: consistency: not expected of a claim"
    ]
    assert lacks(replace(restated, consistency=None)) == [
        "w.again: consistency: no verdict of a restatement"
    ]
    assert lacks(replace(published, method=published.as_published)) == [
        "w.code: method: not expected of a claim"
    ]
    assert claims.missing(claims_file, [found, published]) == ["w.again: no verdict"]


def test_the_command_fails_where_evidence_is_missing(tmp_path, monkeypatch, capsys):
    claims_file, _ = judged(tmp_path, entry(SPEEDUP, 2.0))  # which names no table
    frame = pd.DataFrame([*SLOW, row("dense")])
    monkeypatch.setattr(cli.frame, "load", lambda *roots: frame)
    out = tmp_path / "claims.json"
    assert cli.main(["--claims", claims_file.path, "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert told.err == (
        "claims: w.it: method: judged by records, but `see` names no table or figure\n"
    )
    assert told.out == ("w: 1 claims\n  as published: 1 not measured\n  method: 1 does not hold\n")
    assert json.loads(out.read_text())["claims"][0]["method"]["verdict"] == FAILS


# --- Headlines ---------------------------------------------------------------------------------

HEADLINE = {"title": "It is fast", "published": "2x", "why": "all else hangs on it"}


def test_a_headline_is_as_good_as_the_worst_of_what_it_stands_on(tmp_path):
    headlines = {
        "range": HEADLINE | {"decided_by": ["w.a", "w.b"], "groups": ["w.again.*"]},
        "sums": HEADLINE | {"decided_by": ["w.sum"]},
    }
    entries = [
        entry(SPEEDUP, 2.0, "a"),
        entry(SPEEDUP | {"at": {"batch": 2, "seq_len": 2048}}, 4.0, "b"),
        entry({"kind": "restates", "of": "w.a"}, 2.0, "again.a"),
        entry({"kind": "arithmetic", "right": "2"}, 3, "sum"),
    ]
    rows = times(20, 10) + times(30, 10, seq_len=2048)
    claims_file, verdicts = judged(tmp_path, *entries, rows=rows, headlines=headlines)
    assert {v.id: v.headline for v in verdicts} == {
        "w.a": "range",
        "w.b": "range",
        "w.again.a": "range",
        "w.sum": "sums",
    }
    ranged, sums = findings(claims_file, verdicts)
    assert (ranged.rank, ranged.name, ranged.title) == (1, "range", "It is fast")
    assert (ranged.claims, ranged.restatements) == (["w.a", "w.b"], ["w.again.a"])
    method = ranged.method
    assert (method.verdict, method.count, method.of) == (FAILS, 1, 2)
    assert (method.decided_by, method.words) == ("w.b", "does not hold, on a CPU")
    assert method.reason == "3 [2.999, 3.001] times as fast, less than the figure; on cpu-1 (cpu)"
    # Both ends of a range are shown, whichever of them decides.
    assert [one["value"] for one in method.measured] == pytest.approx([2, 3])
    published = ranged.as_published
    assert (published.verdict, published.count, published.of) == (NOT_MEASURED, 2, 2)
    assert (published.decided_by, published.measured) == ("w.a", [])
    assert ranged.consistency is None
    # A matter of the write-up's own arithmetic has no sides.
    assert (sums.rank, sums.as_published, sums.method) == (2, None, None)
    assert (sums.consistency.verdict, sums.restatements) == (FAILS, ["w.sum"])
    written = json.loads(claims.to_json(claims_file, verdicts))["headlines"]
    assert [one["name"] for one in written] == ["range", "sums"]
    assert written[0]["method"]["decided_by"] == "w.b"


def test_worse_is_what_fails_then_what_differs_then_what_is_open(tmp_path):
    ranked = [FAILS, DIFFERS, CARD, NOT_MEASURED, UNDECIDED, HOLDS]
    assert set(ranked) == set(claims.VERDICTS)
    headlines = {"one": HEADLINE | {"decided_by": ["w.a", "w.b", "w.c"]}}
    entries = [entry(SPEEDUP, 2.0, name) for name in "abc"]
    claims_file, verdicts = judged(tmp_path, *entries, rows=SLOW, headlines=headlines)
    for worse, better in itertools.combinations(ranked, 2):
        given = [
            replace(one, method=replace(one.method, verdict=verdict, reason=one.id))
            for one, verdict in zip(verdicts, (better, worse, worse), strict=True)
        ]
        (found,) = findings(claims_file, given)
        part = found.method
        assert (part.verdict, part.count, part.of, part.reason) == (worse, 2, 3, "w.b")
        assert len(part.measured) == 1
