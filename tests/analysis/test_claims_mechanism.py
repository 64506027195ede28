"""How a figure arose, where its measured side is found, and what is said when either lacks."""

import copy
import csv
import io
import json

import pandas as pd
import pytest

from analysis import claims
from analysis.claims import FAILS, HOLDS, NOT_MEASURED
from analysis.claims import __main__ as cli
from tests.analysis.claims_cases import AT, EMPTY, SPEEDUP, data, entry, load, row, times

SLOW, EQUAL = times(10, 20), times(10, 10)


def judged(tmp_path, *entries, rows=(), system=None):
    content = data(*entries)
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
        ((), NOT_MEASURED, None),
    ]:
        _, (found,) = judged(tmp_path, plain, rows=rows)
        assert (found.verdict, found.mechanism) == (verdict, mechanism)
        _, (found,) = judged(tmp_path, plain | {"mechanism": "slip"}, rows=rows)
        assert found.mechanism == (None if verdict == HOLDS else "slip")


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
        assert one.evidence == [
            {
                "path": f"results/cpu-1/{variant}-2-1024.json",
                "machine": "cpu-1",
                "command": f"measure {variant} 1024",
            }
            for variant in ("dilated-sdpa", "dilated-gather")
        ]
    assert claims.missing(claims_file, found) == []
    line = list(csv.DictReader(io.StringIO(claims.to_csv(found))))[0]
    assert line["see"] == "tables/x-times figures/x-time"
    assert line["mechanism"] == "unknown"
    assert line["evidence"].split() == [e["path"] for e in found[0].evidence]
    assert line["command"] == "measure dilated-sdpa 1024"
    written = json.loads(claims.to_json(claims_file, found))
    assert written["mechanisms"]["slip"]["explanation"] == "by slip."
    assert written["claims"][0]["evidence"] == found[0].evidence


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"evidence": []}, "judged by records, but names none"),
        ({"see": []}, "judged by records, but `see` names no table or figure"),
        ({"evidence": [{"path": "a", "machine": "b", "command": ""}]}, "without path or command"),
        ({"reason": " "}, "no reason"),
        ({"verdict": "maybe"}, "verdict 'maybe'"),
        ({"basis": "hearsay"}, "basis 'hearsay'"),
        ({"basis": "none"}, "refuted without a basis"),
        ({"mechanism": None}, "no mechanism says how it arose"),
        ({"mechanism": "magic"}, "no mechanism says how it arose"),
    ],
)
def test_what_is_missing_is_named_with_its_claim(tmp_path, change, text):
    claims_file, (found,) = judged(
        tmp_path, entry(SPEEDUP, 2.0) | {"see": ["tables/x-t"]}, rows=SLOW
    )
    changed = copy.copy(found)
    for field, value in change.items():
        object.__setattr__(changed, field, value)
    (line,) = claims.missing(claims_file, [changed])
    assert line.startswith("w.it: ") and text in line
    assert claims.missing(claims_file, []) == ["w.it: no verdict"]


def test_the_command_fails_where_evidence_is_missing(tmp_path, monkeypatch, capsys):
    claims_file, _ = judged(tmp_path, entry(SPEEDUP, 2.0))  # which names no table
    frame = pd.DataFrame([*SLOW, row("dense")])
    monkeypatch.setattr(cli.frame, "load", lambda *roots: frame)
    out = tmp_path / "claims.json"
    assert cli.main(["--claims", claims_file.path, "--out", str(out)]) == 1
    assert capsys.readouterr().err == (
        "claims: w.it: judged by records, but `see` names no table or figure\n"
    )
    assert json.loads(out.read_text())["claims"][0]["verdict"] == FAILS
