"""Claims files: how entries expand, and what is said of those that are wrong."""

from pathlib import Path

import pytest

from analysis import claims
from tests.analysis.claims_cases import (
    GROWTH,
    ORDER,
    RISING,
    SPEEDUP,
    TIME,
    data,
    entry,
    load,
)

FILE = Path(__file__).parents[2] / "paper" / "claims.yaml"


COUNTED = {"kind": "arithmetic", "right": "2"}

# --- Expansion and bad files -------------------------------------------------------------------


def test_a_table_makes_a_claim_a_cell(tmp_path):
    cell = entry(SPEEDUP | {"at": {"batch": "{b}", "seq_len": "{n}"}}, "{{who}}", "{who}.n{n}")
    table = {
        "columns": ["n", "core", "fast"],
        "rows": [[1024, 1.5, None], [2048, 2.5, 3.5]],
        "cells": [cell | {"for": {"who": ["core", "fast"], "b": [2]}}],
    }
    claims_file = load(tmp_path, data(table))
    assert {i: c.published for i, c in claims_file.claims.items()} == {
        "w.core.n1024": 1.5,  # the empty cell makes no claim
        "w.core.n2048": 2.5,
        "w.fast.n2048": 3.5,
    }
    assert claims_file.claims["w.fast.n2048"].predicate.at.given() == {"batch": 2, "seq_len": 2048}


def test_what_a_figure_is_about_comes_from_its_predicate_the_write_up_or_itself(tmp_path):
    content = data(
        entry(SPEEDUP, 2.0, "a") | {"about": {"quantity": "speedup"}},
        entry(SPEEDUP | {"at": {"seq_len": 64}}, 2.0, "b") | {"about": {"quantity": "speedup"}},
        entry(COUNTED, 2, "c") | {"about": {"quantity": "runs", "system": "core", "batch": 3}},
        entry(COUNTED, 2, "d") | {"about": {"quantity": "time_share", "plot": "x"}},
        entry(SPEEDUP, 2.0, "e"),
    )
    content["writeups"]["w"]["conditions"]["batch"] = 4
    found = {about: claim.id for about, claim in load(tmp_path, content).by_subject.items()}
    assert found == {
        claims.Subject("w", "speedup", "fast", 2, 1024): "w.a",
        claims.Subject("w", "speedup", "fast", 4, 64): "w.b",
        claims.Subject("w", "runs", "core", 3): "w.c",
        claims.Subject("w", "time_share", plot="x"): "w.d",
    }


@pytest.mark.parametrize("predicate", [COUNTED, {"kind": "context", "reason": "a plan"}])
def test_what_has_no_verdicts_is_not_restated(tmp_path, predicate):
    again = entry({"kind": "restates", "of": "w.a"}, 2.0, "b")
    with pytest.raises(claims.ClaimsError, match=r"w\.b: predicate\.of: w\.a has no verdicts"):
        load(tmp_path, data(entry(predicate, 2.0, "a"), again))


def test_two_figures_of_the_same_are_refused(tmp_path):
    about = {"about": {"quantity": "speedup"}}
    twice = data(entry(SPEEDUP, 2.0, "a") | about, entry(SPEEDUP, 3.0, "b") | about)
    with pytest.raises(claims.ClaimsError, match=r"w\.b: about: w\.a has a figure of the same"):
        load(tmp_path, twice)


def broken(change):
    content = data(entry(dict(SPEEDUP), 2.0))
    change(content, content["writeups"]["w"]["claims"][0])
    return content


def _predicate(**new):
    return lambda content, claim: claim["predicate"].update(new)


def _about(**given):
    return lambda content, claim: claim.update(about=given)


@pytest.mark.parametrize(
    ("change", "place", "field"),
    [
        (lambda c, e: e.update(extra=1), "w.it", "extra: unknown key"),
        (lambda c, e: e.pop("claim"), "w.it", "claim: missing"),
        (lambda c, e: e.pop("predicate"), "w.it", "predicate: missing"),
        (lambda c, e: e["predicate"].pop("kind"), "w.it", "predicate.kind"),
        (_predicate(kind="faster"), "w.it", "predicate.kind: is 'faster', expected one of"),
        (_predicate(tolerance=2), "w.it", "predicate.tolerance"),
        (_predicate(system="nobody"), "w.it", "predicate.system: Value error, unknown system"),
        (_predicate(at={"length": 8}), "w.it", "predicate.at.length"),
        (_predicate(at={"dtype": "int8"}), "w.it", "predicate.at.dtype"),
        (_predicate(card="new"), "w.it", "predicate.card: Value error, unknown card 'new'"),
        (_predicate(resolution="fine"), "w.it", "predicate.resolution"),
        (_predicate(figures="w.t.*"), "w.it", "no claim has the id 'w.t.fast'"),
        (lambda c, e: e["predicate"].pop("against"), "w.it", "predicate.against"),
        (lambda c, e: e.update(id="{n}"), "w.{n}", "id: no column or loop is called 'n'"),
        (lambda c, e: e.update(columns=["n"], rows=[[1, 2]]), "w.it", "rows"),
        (
            lambda c, e: e.update(predicate=dict(TIME), published="soon"),
            "w.it",
            "published: is 'soon', expected a number",
        ),
        (
            lambda c, e: e.update(predicate={"kind": "arithmetic", "right": "open('x')"}),
            "w.it",
            "predicate.left, right: cannot evaluate",
        ),
        (
            lambda c, e: e.update(predicate={k: v for k, v in GROWTH.items()}),
            "w.it",
            "predicate.figures: missing",
        ),
        (
            lambda c, e: e.update(predicate=GROWTH | {"at_most": 1, "at_least": 1}),
            "w.it",
            "predicate.at_least: expected one of below, at_most and at_least",
        ),
        (
            lambda c, e: e.update(predicate=RISING | {"shapes": [{"batch": 1}, {"batch": 2}]}),
            "w.it",
            "predicate.shapes: expected a seq_len in each",
        ),
        (_predicate(at={"sparsity": 1.5}), "w.it", "predicate.at.sparsity"),
        (_predicate(at={"pattern": "checkers"}), "w.it", "predicate.at.pattern"),
        (
            lambda c, e: e.update(predicate=ORDER | {"order": ["core"]}),
            "w.it",
            "predicate.order: expected two systems or more",
        ),
        (lambda c, e: c["systems"]["core"].update(variant="gone"), "systems.core", "variant"),
        (lambda c, e: c["systems"]["core"].update(variant=None), "systems.core", "variant"),
        (
            lambda c, e: c["systems"]["core"].update(replica="gone"),
            "systems.core",
            "replica: Value error, unknown variant 'gone'",
        ),
        (
            lambda c, e: c["systems"]["curve"].update(one_code="x"),
            "systems.curve",
            "one_code: Value error, unknown system 'x'",
        ),
        (
            lambda c, e: c["systems"]["written"].update(fused="x"),
            "systems.written",
            "fused: Value error, unknown system 'x'",
        ),
        (lambda c, e: c["systems"]["wrap"].update(contains="x"), "systems.wrap", "contains"),
        (lambda c, e: c["cards"]["old"].pop("source"), "cards.old", "source"),
        (lambda c, e: c["writeups"]["w"].update(title="T"), "writeups.w", "title"),
        (lambda c, e: c["writeups"]["w"].pop("claims"), "writeups.w", "claims"),
        (lambda c, e: c["writeups"]["w"].pop("source"), "writeups.w", "source"),
        (
            lambda c, e: c["writeups"]["w"]["source"].update(commit="main"),
            "writeups.w",
            "source.commit",
        ),
        (
            lambda c, e: c["writeups"]["w"].update(card="new"),
            "writeups.w",
            "card: Value error, unknown card 'new'",
        ),
        (lambda c, e: e.pop("line"), "w.it", "line"),
        (lambda c, e: e.update(line="17 to 19"), "w.it", "line"),
        (lambda c, e: e.update(strength="hopes"), "w.it", "strength"),
        (lambda c, e: e.update(scope="new"), "w.it", "scope: Value error, unknown card 'new'"),
        (lambda c, e: e.update(subject="thing"), "w.it", "subject"),
        (
            lambda c, e: e.update(history={"verdict": "differs by machine", "reason": "so"}),
            "w.it",
            "history.verdict",
        ),
        (lambda c, e: e.update(mechanism="magic"), "w.it", "unknown mechanism 'magic'"),
        (lambda c, e: e.update(see=["build/x.svg"]), "w.it", "see.0"),
        (_about(quantity="tiem"), "w.it", "about.quantity"),
        (_about(quantity="speedup", length=8), "w.it", "about.length"),
        (_about(quantity="speedup", batch=2), "w.it", "about.batch: the predicate has it already"),
        (_about(quantity="speedup", system="core"), "w.it", "about.system: the predicate has it"),
        (
            lambda c, e: e.update(predicate=COUNTED, about={"quantity": "time"}),
            "w.it",
            "about.system: missing",
        ),
        (
            lambda c, e: e.update(predicate=COUNTED, about={"quantity": "time", "system": "x"}),
            "w.it",
            "about.system: Value error, unknown system",
        ),
        (
            _about(quantity="time_share", plot="a", seq_len=8),
            "w.it",
            "about: expected the quantity and the plot, got quantity, seq_len, plot",
        ),
        (lambda c, e: c["mechanisms"]["slip"].pop("title"), "mechanisms.slip", "title"),
        (
            lambda c, e: c["mechanisms"]["slip"].update(variant="gone"),
            "mechanisms.slip",
            "variant: Value error, unknown variant 'gone'",
        ),
        (lambda c, e: c["mechanisms"].pop("unknown"), "mechanisms", "unknown: missing"),
        (
            lambda c, e: c["writeups"]["w"].update(experiment=None),
            "w.it",
            "neither the write-up nor the system 'fast' names an experiment",
        ),
        (
            lambda c, e: c.update(more={}),
            "top level",
            "expected cards, mechanisms, systems, writeups, headlines",
        ),
    ],
)
def test_bad_file_names_file_claim_and_field(tmp_path, change, place, field):
    with pytest.raises(claims.ClaimsError) as error:
        load(tmp_path, broken(change))
    assert str(error.value).startswith(f"{tmp_path / 'claims.yaml'}: {place}: ")
    assert field in str(error.value)


def test_ids_and_keys_given_twice_and_text_that_is_not_yaml(tmp_path):
    with pytest.raises(claims.ClaimsError, match=r"w\.it: id: given twice"):
        load(tmp_path, data(entry(SPEEDUP, 2.0), entry(SPEEDUP, 3.0)))
    path = tmp_path / "claims.yaml"
    path.write_text("cards: {}\ncards: {}\n")
    with pytest.raises(claims.ClaimsError, match="claims.yaml: not YAML: key 'cards' given twice"):
        claims.load(path)
    path.write_text("cards: {a: [}")
    with pytest.raises(claims.ClaimsError, match="not YAML"):
        claims.load(path)
    with pytest.raises(claims.ClaimsError, match="cannot be read: No such file"):
        claims.load(tmp_path / "none.yaml")


def test_what_an_entry_says_of_itself_and_what_its_kind_makes_of_it(tmp_path):
    claims_file = load(
        tmp_path,
        data(
            entry(SPEEDUP, 2.0, "a") | {"line": "17-19, 21"},
            entry({"kind": "restates", "of": "w.a"}, 2.0, "b") | {"strength": "may"},
            entry(COUNTED, 2, "c") | {"scope": "old", "subject": "method"},
            entry({"kind": "context", "reason": "advice"}, None, "d"),
            entry({"kind": "about_code"}, None, "e"),
        ),
    )
    told = {
        one.id: (one.line, one.sort, one.strength, one.scope, one.subject)
        for one in claims_file.claims.values()
    }
    assert told == {
        "w.a": ("17-19, 21", "claim", "states", None, "class"),
        "w.b": ("7", "restatement", "may", None, "class"),
        "w.c": ("7", "consistency", "states", "old", "method"),
        "w.d": ("7", "context", "states", None, "class"),
        "w.e": ("7", "claim", "states", None, "class"),
    }


# --- Headlines ---------------------------------------------------------------------------------


def _headline(*decided_by, groups=()):
    told = {"title": "It is fast", "published": "2x", "why": "all else hangs on it"}
    return told | {"decided_by": [*decided_by], "groups": [*groups]}


def headed(tmp_path, **headlines):
    content = data(
        entry(SPEEDUP, 2.0, "a"),
        entry(SPEEDUP, 3.0, "b"),
        entry({"kind": "restates", "of": "w.a"}, 2.0, "again.a"),
        entry({"kind": "context", "reason": "advice"}, None, "advice"),
    )
    return load(tmp_path, content | {"headlines": headlines})


def test_every_entry_but_context_belongs_to_the_headline_that_it_decides_or_fits(tmp_path):
    # What decides one headline stays with it, whatever pattern it fits.
    claims_file = headed(tmp_path, one=_headline("w.a"), two=_headline("w.b", groups=["w.*"]))
    assert claims_file.headline_of == {"w.a": "one", "w.b": "two", "w.again.a": "two"}
    assert headed(tmp_path).headline_of == {}  # without headlines none is asked for


@pytest.mark.parametrize(
    ("headlines", "text"),
    [
        (
            {"one": _headline("w.a", "w.again.a")},
            "headlines: w.b is in none",
        ),
        (
            {"one": _headline("w.a", groups=["w.b", "w.again.*"]), "two": _headline("w.a")},
            "headlines.two: decided_by: w.a decides one already",
        ),
        (
            {
                "one": _headline("w.a", groups=["w.again.*"]),
                "two": _headline("w.b", groups=["w.ag*"]),
            },
            "headlines.two: groups: w.again.a is in one already",
        ),
        (
            {"one": _headline("w.c")},
            "headlines.one: decided_by: no claim has the id 'w.c'",
        ),
        (
            {"one": _headline("w.advice")},
            "headlines.one: decided_by: no claim has the id 'w.advice'",
        ),
        (
            {"one": _headline("w.a", groups=["w.advice"])},
            "headlines.one: groups: nothing fits 'w.advice'",
        ),
        ({"one": _headline(groups=["w.*"])}, "headlines.one: decided_by"),
    ],
)
def test_headlines_that_leave_an_entry_out_or_share_one_are_refused(tmp_path, headlines, text):
    with pytest.raises(claims.ClaimsError) as error:
        headed(tmp_path, **headlines)
    assert str(error.value).startswith(f"{tmp_path / 'claims.yaml'}: {text}")
