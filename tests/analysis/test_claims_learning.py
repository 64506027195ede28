"""Verdicts by trainings: one attention beside another, and when nothing is decided."""

import pandas as pd
import pytest

from analysis import claims
from analysis.claims import CARD, DIFFERS, FAILS, HOLDS, NOT_MEASURED, UNDECIDED, learning
from analysis.records import learnt
from analysis.statistics import seeds
from experiments.training.recipes import RECIPES
from tests.analysis.claims_cases import AT, SPEEDUP, data, entry, load, row, times
from tests.analysis.trained_rows import HALF_WAY, blocks, trained

LESS = {
    "kind": "learns",
    "system": "fast",
    "against": "base",
    "learns": "text",
    "after": "equal steps",
}
AT_FLOPS = LESS | {"after": "equal FLOPs"}
RECALL = LESS | {"learns": "associative_recall", "measure": "accuracy", "by": 0.05}
LONGER = {"kind": "longer_context", "system": "fast", "learns": "text"}
AGAIN = RECIPES["text-smoke"].seeds


def around(value, spread=0.01):
    """Four seeds."""
    return [value + spread * step for step in (-1.5, -0.5, 0.5, 1.5)]


def pair(own, base, **case):
    return [trained("dilated-sdpa", own, **case), trained("dense", base, **case)]


@pytest.mark.parametrize(
    ("own", "base", "by", "verdict"),
    [
        (2.0, 2.3, 0, HOLDS),
        (2.3, 2.0, 0, FAILS),
        (2.0, 2.01, 0, UNDECIDED),
        (2.0, 2.3, 0.2, HOLDS),
        (2.0, 2.3, 0.3, UNDECIDED),
        (2.0, 2.3, 0.4, FAILS),
        (2.0, 2.0, -0.1, HOLDS),
        (2.1, 2.0, -0.1, UNDECIDED),
        (2.3, 2.0, -0.1, FAILS),
    ],
)
def test_a_loss_is_lower_where_the_whole_interval_over_seeds_says_so(judge, own, base, by, verdict):
    rows = pair(around(own), around(base))
    found = judge(LESS | {"by": by}, rows=rows)
    assert (found.verdict, found.basis) == (verdict, "records")
    expected = seeds.difference(around(own), around(base), AGAIN)
    assert found.measured == {
        "value": pytest.approx(expected.value),
        "low": pytest.approx(expected.low),
        "high": pytest.approx(expected.high),
        "unit": "bits/byte",
    }
    assert found.reason.startswith(f"at 256 tokens {own:g} beside {base:g} bits/byte, a difference")
    assert [one["path"] for one in found.evidence] == [one["path"] for one in rows]


def test_the_verdict_says_how_small_the_models_are(judge):
    lengths = [*pair(around(2.0), around(2.3)), *pair(around(2.2), around(2.4), seq_len=64)]
    found = judge(LESS, rows=lengths)
    assert found.stand_in == (
        "at our scale: models of 1M parameters, rows of 64 to 256 bytes of Python sources, "
        "4 seeds each, on a CPU"
    )
    card = judge(LESS, rows=pair(around(2.0), around(2.3), machine="cuda-new"))
    assert card.stand_in.endswith("rows of 256 bytes of Python sources, 4 seeds each, on New Card")
    assert found.predicate == (
        "loss of fast on text is below that of base after equal steps, at every length"
    )


def test_after_as_many_flops_the_dearer_side_is_read_half_way(judge):
    """Its steps cost twice as much, so that the cheaper training ends when it has made half."""
    rows = [
        trained("dilated-sdpa", around(2.3), step_flops=500),
        trained("dense", around(2.0), step_flops=1000),
    ]
    assert judge(LESS, rows=rows).verdict == FAILS
    found = judge(AT_FLOPS, rows=rows)
    assert found.verdict == HOLDS
    assert found.measured["value"] == pytest.approx(2.3 - 2.0 - HALF_WAY)
    steps = RECIPES["text-smoke"].training.steps
    assert f"bits/byte after {500 * steps:.2g} FLOPs" in found.reason


def test_what_saved_flops_gain_is_told_where_enough_are_saved(judge):
    asked = AT_FLOPS | {"saves": 1.25}

    def rows(step_flops, loss=2.3, seq_len=256):
        return [
            trained("dilated-sdpa", around(loss), step_flops=step_flops, seq_len=seq_len),
            trained("dense", around(2.0), step_flops=1000, seq_len=seq_len),
        ]

    found = judge(asked, rows=rows(900))
    assert found.verdict == UNDECIDED
    assert found.reason.startswith("on such rows a step saves too few FLOPs to tell: at 256 tokens")
    assert judge(asked, rows=rows(500)).verdict == HOLDS
    # Shorter rows that save less are left out.
    found = judge(asked, rows=[*rows(500), *rows(950, seq_len=64)])
    assert found.verdict == HOLDS and "rows of 256 bytes" in found.stand_in
    # The schedule that saves enough is taken, though another is closer in FLOPs.
    found = judge(asked, rows=[*rows(500), *rows(900, 2.6)[:1]])
    assert found.verdict == HOLDS
    assert found.predicate.endswith("at every length where a step is 1.25 times cheaper")


def test_what_was_never_tested_after_as_many_flops_decides_nothing(judge):
    rows = [
        trained("dilated-sdpa", around(2.3), step_flops=100),
        trained("dense", around(2.0), step_flops=1000),
    ]
    found = judge(AT_FLOPS, rows=rows)
    assert (found.verdict, found.measured) == (UNDECIDED, None)
    assert "never tested after as many FLOPs" in found.reason


def test_models_that_an_n_gram_model_beats_decide_nothing(judge):
    found = judge(LESS, rows=pair(around(2.0), around(2.3), of_three=1.9))
    assert found.verdict == UNDECIDED
    assert found.reason.startswith(
        "no model of the longest rows is better than a Kneser-Ney model of order 3: "
    )
    # One side that has learnt something is enough: the other's failure is what is asked for.
    assert judge(LESS, rows=pair(around(2.0), around(2.3), of_three=2.1)).verdict == HOLDS


def test_a_task_that_nobody_learnt_decides_nothing(judge):
    def recall(window, dense):
        sides = {"measure": "accuracy", "recipe": "recall-smoke"}
        return pair(around(window), around(dense), **sides)

    assert judge(RECALL, rows=recall(0.5, 0.98)).verdict == HOLDS
    assert judge(RECALL, rows=recall(0.97, 0.98)).verdict == FAILS
    found = judge(RECALL, rows=recall(0.2, 0.9))
    assert found.verdict == UNDECIDED
    assert found.reason.startswith(
        "no model of the longest rows gives 95 % of the answers rightly: "
    )
    assert "tokens of associative recall" in found.stand_in
    # A recipe of another source is no training of what is asked for.
    assert judge(LESS, rows=recall(0.5, 0.98)).verdict in (CARD, NOT_MEASURED)


def test_two_seeds_are_too_few(judge):
    found = judge(LESS, rows=pair([2.0, 2.001], around(2.3)))
    assert found.verdict == UNDECIDED
    assert found.reason.startswith("by 2 seeds, where 3 are needed")


def test_the_longest_rows_refute_and_all_lengths_confirm(judge):
    long, short = pair(around(2.0), around(2.3)), pair(around(2.6), around(2.4), seq_len=64)
    found = judge(LESS, rows=[*short, *long])
    assert found.verdict == UNDECIDED
    assert found.measured["value"] == pytest.approx(-0.3)
    assert judge(LESS, rows=long + pair(around(2.2), around(2.4), seq_len=64)).verdict == HOLDS
    turned = [*pair(around(2.3), around(2.0)), *pair(around(2.2), around(2.4), seq_len=64)]
    assert judge(LESS, rows=turned).verdict == FAILS


def test_of_several_sparsities_the_one_with_as_much_work_is_compared(judge):
    asked = LESS | {"against": "half", "against_at": {"pattern": "strided", "sparsity": None}}
    rows = [
        trained("dilated-sdpa", around(2.0), step_flops=500),
        blocks(around(2.3), sparsity=0.9, step_flops=520),
        blocks(around(1.8), sparsity=0.5, step_flops=900),
        blocks(around(1.8), pattern="local_window", step_flops=500),
    ]
    found = judge(asked, rows=rows)
    assert found.verdict == HOLDS
    assert [one["path"] for one in found.evidence] == [rows[0]["path"], rows[1]["path"]]


def test_both_sides_have_the_recipe_heads_and_tokens_of_a_step_in_common(judge):
    for change in ({"batch": 4}, {"heads": 4, "kv_heads": 4}, {"machine": "cpu-2"}):
        rows = [trained("dilated-sdpa", around(2.0)), trained("dense", around(2.3), **change)]
        assert judge(LESS, rows=rows).verdict in (CARD, NOT_MEASURED), change


def test_both_sides_learnt_the_same_text(judge):
    own, base = pair(around(2.0), around(2.3))
    other = base["learning"].model_copy(update={"sha256": 64 * "1"})
    apart = [own, base | {"learning": other}]
    assert judge(LESS, rows=apart).verdict in (CARD, NOT_MEASURED)
    assert judge(LESS, rows=[*apart, base]).verdict == HOLDS


def test_the_library_s_rule_of_heads_is_another_system(judge):
    own, base = pair(around(2.0), around(2.3))
    assert judge(LESS, rows=[own | {"head_offset": "block"}, base]).verdict in (CARD, NOT_MEASURED)


def test_machines_that_oppose_each_other_differ(judge):
    there = pair(around(2.3), around(2.0), machine="cuda-new")
    found = judge(LESS, rows=[*pair(around(2.0), around(2.3)), *there])
    assert found.verdict == DIFFERS
    assert "on a CPU and at our scale" in found.stand_in


def test_the_largest_models_decide_and_smaller_ones_are_told(judge):
    here, there = (
        pair(around(own), around(base), **case)
        for own, base, case in (
            (2.3, 2.0, {}),
            (2.0, 2.3, {"machine": "cuda-new", "parameters": 10**7}),
        )
    )
    found = judge(LESS, rows=[*here, *there])
    assert found.verdict == HOLDS and found.stand_in.startswith("at our scale: models of 10M")
    assert "; does not hold at our scale: models of 1M parameters" in found.reason
    assert len(found.evidence) == 4
    # Where the larger ones tell nothing, those that do decide.
    open_there = pair(around(2.0), around(2.0), machine="cuda-new", parameters=10**7)
    assert judge(LESS, rows=[*here, *open_there]).verdict == FAILS


def test_longer_rows_are_compared_with_as_many_tokens_a_step(judge):
    def at(length, loss, batch):
        whole = {"segment_lengths": (length,), "dilation_rates": (1,)}
        return trained("dilated-sdpa", around(loss), seq_len=length, batch=batch, **whole)

    rows = [at(64, 2.5, 32), at(128, 2.6, 16), at(256, 2.2, 8)]
    found = judge(LONGER, rows=rows)
    assert found.verdict == HOLDS
    assert found.measured["value"] == pytest.approx(2.2 - 2.5)
    assert found.reason.startswith("at 256 and 64 tokens 2.2 beside 2.5 bits/byte")
    assert judge(LONGER, rows=[at(64, 2.2, 32), at(256, 2.5, 8)]).verdict == FAILS
    other = judge(LONGER, rows=[at(64, 2.5, 8), at(256, 2.2, 8)])
    assert other.verdict in (CARD, NOT_MEASURED)


def test_a_system_is_trained_as_any_variant_that_computes_the_same(tmp_path):
    content = data(entry(LESS))
    content["systems"]["fast"]["also"] = ["dilated-triton"]
    claims_file = load(tmp_path, content)
    rows = [trained("dilated-triton", around(2.0)), trained("dense", around(2.3))]
    assert claims.evaluate(claims_file, pd.DataFrame(rows))[0].method.verdict == HOLDS


def test_the_longest_rows_must_have_been_learnt_and_both_lengths_where_these_are_compared(judge):
    short = pair(around(2.0), around(2.3), seq_len=64, of_three=2.9)
    long = pair(around(2.6), around(2.7), of_three=2.5)
    found = judge(LESS, rows=[*short, *long])
    assert found.verdict == UNDECIDED
    assert found.reason.startswith("no model of the longest rows is better")
    # Of shorter rows that nobody learnt nothing is told.
    learnt_long = pair(around(2.0), around(2.3))
    found = judge(
        LESS, rows=[*learnt_long, *pair(around(2.9), around(2.8), seq_len=64, of_three=2)]
    )
    assert found.verdict == HOLDS and "at 64 tokens" not in found.reason

    def at(length, loss):
        own = {"segment_lengths": (length,), "dilation_rates": (1,), "of_three": 2.5}
        return trained("dilated-sdpa", around(loss), seq_len=length, batch=2048 // length, **own)

    assert judge(LONGER, rows=[at(64, 2.3), at(256, 2.6)]).verdict == UNDECIDED
    assert judge(LONGER, rows=[at(64, 2.2), at(256, 2.4)]).verdict == FAILS


def test_what_is_said_of_large_models_needs_large_models(judge):
    scale = {"seq_len": 8192, "parameters": 125_000_000}
    asked = LESS | {"scale": scale}
    found = judge(asked, rows=pair(around(2.0), around(2.3)))
    assert (found.verdict, found.basis, found.evidence) == (CARD, "none", [])
    assert found.reason == (
        "said of 125M parameters on rows of 8192 tokens; no training of ours is that large"
    )
    assert found.needs.endswith("on any CUDA device")
    large = {"seq_len": 8192, "parameters": 130_000_000}
    assert judge(asked, rows=pair(around(2.0), around(2.3), **large)).verdict == HOLDS


@pytest.mark.parametrize(
    ("tiers", "verdict", "needs", "tier"),
    [
        ({"laptop"}, NOT_MEASURED, "a run", "laptop"),
        ({"laptop", "gpu"}, NOT_MEASURED, "a run", "laptop"),
        ({"gpu"}, CARD, "any CUDA device", "gpu"),
        ((), NOT_MEASURED, "a case", None),
    ],
)
def test_what_is_missing_names_the_tier_that_has_it(
    judge, monkeypatch, tiers, verdict, needs, tier
):
    cases = [
        {"experiment": "exp", "variant": variant, "recipe": "text-smoke"}
        for variant in ("dense", "dilated-sdpa")
    ]
    monkeypatch.setattr(learning, "planned", lambda name: cases if name in tiers else ())
    found = judge(LESS)
    command = tier and f"python -m experiments run exp --tier {tier}"
    assert (found.verdict, found.needs, found.command) == (verdict, needs, command)
    assert found.reason.startswith("missing: trainings of dilated-sdpa, dense on text")


def test_a_statement_that_nothing_measures_says_what_would(judge):
    asked = {"kind": "unmeasured", "reason": "nobody looked", "needs": "a look"}
    found = judge(asked)
    assert (found.verdict, found.reason, found.needs) == (NOT_MEASURED, "nobody looked", "a look")
    assert judge(asked | {"card": True}).verdict == CARD


def test_trainings_and_passes_of_one_system_are_kept_apart(judge):
    """A step of a model is no pass of attention, and newer code of trainings supersedes none."""
    later = {"started_at": "2026-02-01", "code_digest": "another"}
    steps = [
        trained(variant, around(2.0), **AT) | later | {"median_ms": 1.0}
        for variant in ("dilated-gather", "dilated-sdpa")
    ]
    found = judge(SPEEDUP, 2.0, [*times(20, 10), *steps])
    assert found.verdict == HOLDS
    assert all("smoke" not in one["path"] for one in found.evidence)


def test_a_paper_has_places_and_no_verdict_as_published(tmp_path):
    paper = {"title": "T", "arxiv": "2307.02486", "date": "2023-07-05"}

    def book(line="section 4.2, table 2", predicate=LESS, **changes):
        content = data(entry(predicate) | {"line": line})
        own = content["writeups"]["w"]
        own.pop("source"), own.pop("card")
        own.update({"paper": paper} | changes)
        return load(tmp_path, content)

    claims_file = book()
    assert claims_file.writeups["w"].origin.url == "https://arxiv.org/abs/2307.02486"
    found = claims.evaluate(claims_file, pd.DataFrame(pair(around(2.0), around(2.3))))[0]
    assert found.as_published is None and found.method.verdict == HOLDS
    for wrong, told in [
        ({"line": 7}, "line: is '7', expected a section, table or figure"),
        ({"predicate": SPEEDUP}, "the write-up names no card, which speedup needs"),
        ({"paper": None}, "source, paper: expected one of them"),
    ]:
        with pytest.raises(claims.ClaimsError, match=told):
            book(**wrong)
    with pytest.raises(claims.ClaimsError, match="line: is 'table 2', expected a line"):
        load(tmp_path, data(entry(SPEEDUP) | {"line": "table 2"}))


def test_rows_without_trainings_are_none(judge):
    rows = [one | {"recipe": None} for one in (row("dilated-sdpa"), row("dense"))]
    assert judge(LESS, rows=rows).verdict in (CARD, NOT_MEASURED)
    assert learnt.MEASURES == ("loss", "accuracy")


def test_the_schedule_that_covers_the_whole_row_is_the_paper_s(judge):
    """Whatever is closer in FLOPs."""
    short = {"segment_lengths": (16, 64), "dilation_rates": (1, 4), "step_flops": 990}
    whole = {"segment_lengths": (64, 256), "dilation_rates": (1, 4), "step_flops": 500}
    rows = [
        trained("dilated-sdpa", around(2.6), **short),
        trained("dilated-sdpa", around(2.0), **whole),
        trained("dense", around(2.3)),
    ]
    found = judge(LESS, rows=rows)
    assert found.verdict == HOLDS
    assert found.reason.split("; on ")[0].endswith("(segments 64, 256 at rates 1, 4)")
    assert judge(LESS, rows=[rows[0], rows[2]]).verdict == FAILS


def test_longer_rows_are_compared_by_the_same_branches_but_for_their_size(judge):
    def at(length, loss, *shares, step_flops=1000):
        segments = tuple(length // share for share in shares)
        rates = tuple(4**place for place in range(len(shares)))
        own = {"segment_lengths": segments, "dilation_rates": rates, "step_flops": step_flops}
        return trained("dilated-sdpa", around(loss), seq_len=length, batch=2048 // length, **own)

    rows = [at(64, 2.5, 4, 1), at(256, 2.2, 4, 1), at(256, 2.9, 2, step_flops=3000)]
    found = judge(LONGER, rows=rows)
    assert found.verdict == HOLDS
    assert "(segments 64, 256 at rates 1, 4 beside segments 16, 64 at rates 1, 4)" in found.reason
