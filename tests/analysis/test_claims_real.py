"""The real claims file: what is in it, and what is judged with and without records."""

import csv
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from analysis import claims
from analysis.claims import CARD, FAILS, HOLDS, NOT_MEASURED
from analysis.claims import __main__ as cli
from analysis.outputs import written
from analysis.selection.published import CLAIMS, EXPERIMENTS
from experiments import grid
from tests.analysis import synthetic
from tests.analysis.claims_cases import EMPTY, MIB, SPEEDUP, data, entry, load

HISTORY = "public history"


@pytest.fixture(scope="module")
def without_records(claims_file):
    return claims.evaluate(claims_file, EMPTY)


def test_every_statement_and_cell_is_a_claim(claims_file):
    assert Counter(c.writeup for c in claims_file.claims.values()) == {
        "comprehensive": 210,
        "dilated": 106,
        "block_sparse": 128,
        "ring": 100,
        "overview": 58,
        "longnet": 50,
    }
    parts = Counter(".".join(i.split(".")[:2]) for i in claims_file.claims)
    assert parts["comprehensive.time"] == 54
    assert parts["comprehensive.summary"] == 4 * 18
    assert parts["comprehensive.speedup"] == 15
    cells = ("time", "std", "memory", "throughput")
    assert [parts[f"dilated.{cell}"] for cell in cells] == [6] * 4
    assert parts["dilated.vram"] == 10
    cells = ("time", "memory", "speedup", "runs")
    assert [parts[f"block_sparse.{cell}"] for cell in cells] == [15, 15, 12, 4]
    # The best of three lengths, three rows of memory, and a table of five rows by four systems.
    cells = ("throughput", "best", "memory", "scaling")
    assert [parts[f"ring.{cell}"] for cell in cells] == [3] * 4
    rows = Counter(".".join(i.split(".")[:3]) for i in claims_file.claims)
    cells = ("memory", "speed", "multi-gpu", "locality", "sparsity")
    assert all(rows[f"ring.feature.{cell}"] >= 4 for cell in cells)
    assert claims_file.claims["comprehensive.time.improved.b1.n4096"].published == 10.40
    assert claims_file.claims["comprehensive.time.ring-multihead.b4.n8192"].published == 693.31


def test_context_is_kept_and_not_counted(claims_file, without_records):
    """Set-up, files, opinions, and figures that no sentence states."""
    context = {v.id for v in without_records if v.sort == "context"}
    assert {
        "comprehensive.setup.gpus",
        "comprehensive.summary.std.ring.b1.n2048",
        "comprehensive.finding.unlimited.ring",
        "dilated.setup.date",
        "block_sparse.recommend.balance",
        "block_sparse.speedup.baseline.n2048",
        "ring.recommend.multi-gpu",
        "overview.plot.flat",
        "overview.hardware.h100",
    } <= context
    for verdict in without_records:
        sides = (verdict.as_published, verdict.method, verdict.consistency)
        assert (sides == (None, None, None)) == (verdict.id in context)
        assert (verdict.headline is None) == (verdict.id in context)
    tally = claims.counts(without_records)
    assert {name: own["claim"] for name, own in tally.items()} == {
        "comprehensive": 112,
        "dilated": 56,
        "block_sparse": 91,
        "ring": 70,
        "overview": 24,
        "longnet": 13,
    }


def test_without_records_arithmetic_physics_and_history_still_decide(claims_file, without_records):
    verdicts = without_records
    assert [v.id for v in verdicts] == list(claims_file.claims)
    by_id = {v.id: v for v in verdicts}
    for verdict in verdicts:
        for side in (verdict.as_published, verdict.method, verdict.consistency):
            if side is not None:
                assert side.reason and side.verdict in claims.VERDICTS
                assert side.basis != "records" and not side.evidence
    for claim_id, side, verdict, basis in [
        ("comprehensive.summary.memory.ring.b1.n8192", "method", FAILS, "physics"),
        ("comprehensive.speedup.multihead.b1.n4096", "method", FAILS, "construction"),
        ("comprehensive.speedup.multihead.b1.n4096", "as_published", FAILS, "construction"),
        ("comprehensive.finding.speedup.ring.n8192", "method", NOT_MEASURED, "none"),
        ("comprehensive.finding.speedup.ring.n8192", "consistency", HOLDS, "arithmetic"),
        ("comprehensive.finding.float32-required.multihead", "as_published", FAILS, HISTORY),
        ("comprehensive.finding.functional.ring-multihead", "as_published", FAILS, HISTORY),
        ("comprehensive.recommend.long.b4.n4096", "as_published", FAILS, "arithmetic"),
        ("comprehensive.recommend.long.b4.n4096", "method", NOT_MEASURED, "none"),
        ("comprehensive.same-pattern.b4.n4096", "consistency", FAILS, "arithmetic"),
        ("comprehensive.same-pattern.b2.n4096", "consistency", HOLDS, "arithmetic"),
        ("comprehensive.rises.dilated.b2", "consistency", FAILS, "arithmetic"),
        ("comprehensive.finding.every-batch.improved.n8192", "consistency", FAILS, "arithmetic"),
        ("comprehensive.finding.every-batch.improved.n4096", "consistency", HOLDS, "arithmetic"),
        ("dilated.speedup.multihead.b4.n8192", "method", FAILS, "construction"),
        ("dilated.result.order.n4096", "method", HOLDS, "construction"),
        ("dilated.finding.memory-order.n8192", "method", HOLDS, "construction"),
        ("dilated.finding.memory-sublinear.dilated", "method", FAILS, "physics"),
        ("dilated.finding.float16-optimal", "as_published", FAILS, HISTORY),
        ("dilated.finding.float16-optimal", "method", CARD, "none"),
        ("dilated.gpu.throughput", "consistency", HOLDS, "arithmetic"),
        ("dilated.throughput.dilated.b4.n8192", "consistency", FAILS, "arithmetic"),
        ("dilated.identity.dilated", "as_published", FAILS, HISTORY),
        ("block_sparse.summary.memory-reduction", "consistency", HOLDS, "arithmetic"),
        ("block_sparse.finding.reduction.least.n2048", "consistency", FAILS, "arithmetic"),
        ("block_sparse.finding.complexity.block-sparse-98", "method", FAILS, "arithmetic"),
        ("block_sparse.finding.best.n4096", "as_published", FAILS, "arithmetic"),
        ("block_sparse.finding.best.n8192", "as_published", FAILS, "construction"),
        ("block_sparse.finding.optimum-varies", "as_published", FAILS, "construction"),
        ("block_sparse.summary.16k.baseline", "method", HOLDS, "physics"),
        ("block_sparse.setup.batch.small", "consistency", HOLDS, "arithmetic"),
        ("block_sparse.speedup.block-sparse-90.n8192", "method", NOT_MEASURED, "none"),
        ("block_sparse.finding.crossover.block-sparse-90", "method", CARD, "none"),
        ("ring.throughput-growth.n2048-n4096", "consistency", FAILS, "arithmetic"),
        ("ring.limit.estimate.ring-standard", "consistency", FAILS, "arithmetic"),
        ("ring.limit.100k.ring-standard", "as_published", HOLDS, "physics"),
        ("ring.recommend.memory", "as_published", FAILS, "arithmetic"),
        ("ring.finding.one-gpu.own-figures", "consistency", FAILS, "arithmetic"),
        ("ring.finding.increases.ring-hilbert", "method", HOLDS, "physics"),
        ("ring.feature.locality.ring-hilbert.text", "method", FAILS, "construction"),
        ("ring.feature.sparsity.ring-block-sparse", "as_published", FAILS, HISTORY),
        ("ring.feature.multi-gpu.ring-standard", "as_published", FAILS, HISTORY),
        ("ring.best.n1024", "as_published", FAILS, "construction"),
        ("ring.best.n1024", "method", NOT_MEASURED, "none"),
        ("overview.plot.256m.tokens", "consistency", HOLDS, "arithmetic"),
        ("overview.plot.288m.tokens", "consistency", FAILS, "arithmetic"),
        ("overview.speed.block-sparse.least.own-figures", "consistency", FAILS, "arithmetic"),
        ("overview.speed.block-sparse.largest.own-figures", "consistency", HOLDS, "arithmetic"),
        ("overview.scale.block-sparse.memory.block-sparse-90", "method", FAILS, "physics"),
        ("overview.scale.billion", "as_published", FAILS, HISTORY),
        ("overview.scale.billion", "method", CARD, "none"),
        ("overview.speed.flash.largest", "method", CARD, "none"),
        ("longnet.own.sparse.t32768.n32768", "consistency", HOLDS, "arithmetic"),
        ("longnet.own.dense.t8192", "consistency", HOLDS, "arithmetic"),
        ("longnet.own.dense.t32768", "consistency", FAILS, "arithmetic"),
        ("longnet.own.shorter.n2048", "consistency", FAILS, "arithmetic"),
        ("longnet.complexity.linear", "consistency", HOLDS, "arithmetic"),
        ("longnet.scale.sparse.n8192", "method", CARD, "none"),
        ("longnet.scale.prompt", "method", NOT_MEASURED, "none"),
    ]:
        found = getattr(by_id[claim_id], side)
        assert (found.verdict, found.basis) == (verdict, basis), (claim_id, side)
    assert by_id["ring.feature.sparsity.ring-block-sparse"].method is None


def test_what_is_missing_leads_to_the_command_that_measures_it(without_records):
    by_id = {verdict.id: verdict for verdict in without_records}
    run, improved = "python -m experiments run", "comprehensive.speedup.improved.b1.n2048"
    wrapped = "comprehensive.speedup.multihead.b1.n2048"
    short = "--only seq_len=2048"
    expected = {
        (improved, "method"): (
            *(NOT_MEASURED, "a run"),
            f"{run} comprehensive --tier laptop --only variant=dilated-sdpa {short}",
        ),
        (improved, "as_published"): (
            *(NOT_MEASURED, "a run"),
            f"{run} as_published --tier laptop --only variant=published-over-heads {short}",
        ),
        ("dilated.memory.dilated.b1.n2048", "method"): (
            *(CARD, "any CUDA device"),
            f"{run} dilated --tier gpu --only variant=dilated-gather {short}",
        ),
        ("comprehensive.time.dilated.b1.n2048", "method"): (CARD, "GTX 1080", None),
        (wrapped, "as_published"): (NOT_MEASURED, "a replica", None),
    }
    found = {key: getattr(by_id[key[0]], key[1]) for key in expected}
    assert {k: (one.verdict, one.needs, one.command) for k, one in found.items()} == expected


def test_every_command_names_cases_that_a_grid_has(without_records):
    commands = {
        side.command
        for verdict in without_records
        for side in (verdict.as_published, verdict.method)
        if side is not None and side.command
    }
    assert len(commands) > 20
    for command in commands:
        words = command.split()
        experiment, tier = words[4], words[words.index("--tier") + 1]
        only = dict(word.split("=") for word in words if "=" in word)
        cases = [t.case.cells() for t in grid.tasks(tier) if experiment in t.experiments]
        assert any(all(str(one[k]) == v for k, v in only.items()) for one in cases), command


def test_the_headlines_hold_every_claim_and_start_with_what_depends_on_most(claims_file):
    names = list(claims_file.headlines)
    assert names[:5] == ["improved", "ring-dilated", "block-sparse", "billion", "ring-memory"]
    assert 40 <= len(names) <= 55
    assert set(claims_file.headline_of.values()) == set(names)


def test_a_line_of_a_write_up_has_an_address(claims_file):
    for name, writeup in claims_file.writeups.items():
        code = "https://github.com/DarcStar-Solutions-Tech/dilated-attention-pytorch/blob/"
        paper = "https://arxiv.org/abs/2307.02486"
        assert writeup.origin.url.startswith(paper if name == "longnet" else code)


def test_published_times_respect_the_floors_of_the_card(claims_file):
    """No logged time is impossible, and the floor is the one computed by hand."""
    evidence = claims.Evidence(claims_file, EMPTY)
    claim = claims_file.claims["comprehensive.time.improved.b1.n8192"]
    pairs = 8 * (8 * 1024**2 + 4 * 1024**2 + 2 * 1024**2)
    by_hand = 1000 * 256 * pairs / (1.25 * 8.87e12)
    at = claim.predicate.at.given()
    assert evidence.floor_ms(claim, "improved", at, "gtx-1080") == pytest.approx(by_hand)
    times = [c for c in claims_file.claims.values() if c.kind in ("absolute_time", "throughput")]
    unnamed = claims_file.claims["dilated.cpu.time"]
    assert {evidence.judge(c).verdict for c in times if c is not unnamed} == {CARD}
    assert evidence.judge(unnamed).verdict == NOT_MEASURED


def test_verdicts_on_synthetic_records(verdicts):
    verdicts = {v.id: v for v in verdicts}
    assert len(verdicts) == 652
    by_records = [v for v in verdicts.values() if v.method and v.method.basis == "records"]
    assert len(by_records) > 50
    speedup = verdicts["comprehensive.speedup.improved.b1.n4096"].method
    expected = (0.3 + 30 * 4**1.6) / (0.3 + 9 * 4**1.55)
    assert speedup.measured["value"] == pytest.approx(expected)
    assert {e["machine"] for e in speedup.evidence} == {synthetic.GPU}
    # Dense attention is fused here: what is written down has records of its own.
    ranged = verdicts["overview.speed.block-sparse.largest.written-out"].method
    assert ranged.verdict == HOLDS and ranged.measured["value"] > 1
    assert ranged.beside["over"] == "fused attention" and ranged.beside["measured"]["value"] > 1
    # Two score matrices of 16 bits fill the card, whatever was measured.
    assert verdicts["block_sparse.runs.baseline.n16384"].method.verdict == HOLDS
    assert verdicts["block_sparse.runs.block-sparse-98.n16384"].method.verdict == HOLDS
    assert verdicts["block_sparse.finding.optimum-varies"].method.verdict == FAILS
    # The crossover is said of one card, which has no record.
    crossing = verdicts["block_sparse.finding.crossover.block-sparse-95"].method
    assert (crossing.verdict, crossing.needs) == (CARD, "GTX 1080")
    large = verdicts["dilated.vram.dilated.n32768"].method.measured
    assert large["value"] == pytest.approx(1.004 * 4 * 32768 * 768 * 32 / MIB + 3 * 192)


def test_nothing_is_missing_with_records_or_without(claims_file, verdicts, without_records):
    for found in (verdicts, without_records):
        assert claims.missing(claims_file, found) == []


def test_a_write_up_without_experiment_is_judged_by_those_of_its_systems(verdicts):
    verdicts = {v.id: v for v in verdicts}
    places = {
        "overview.speed.block-sparse.least.written-out": {"backends", "block_sparse"},
        "overview.scale.ring.time.ring-standard": {"ring"},
    }
    for claim_id, experiments in places.items():
        cases = {Path(e["path"]).stem for e in verdicts[claim_id].method.evidence}
        known = [
            {case.name for tier in ("laptop", "gpu") for case in synthetic.cases(e, tier)}
            for e in experiments
        ]
        assert cases <= set().union(*known), claim_id
        assert all(cases & names for names in known), claim_id


def test_what_a_claim_points_to_is_what_notebooks_write(claims_file):
    made = {path.rpartition(".")[0] for name in EXPERIMENTS for path in written(name)}
    pointed = {place for claim in claims_file.claims.values() for place in claim.see}
    pointed |= {m.evidence for m in claims_file.mechanisms.values() if m.evidence}
    assert pointed - made == set()


def test_every_mechanism_explains_some_claim(claims_file):
    used = {claim.mechanism for claim in claims_file.claims.values()}
    used |= {system.mechanism for system in claims_file.systems.values()}
    assert set(claims_file.mechanisms) - used <= {claims.UNKNOWN}


def test_one_changed_number_changes_only_what_rests_on_it(claims_file, both, verdicts):
    """dilated-sdpa, 4096 tokens, batch 1, made six times faster on the GPU."""
    before, frame = verdicts, both
    speedup = next(v for v in before if v.id == "comprehensive.speedup.improved.b1.n4096")
    path = next(e["path"] for e in speedup.method.evidence if "dilated-sdpa_" in e["path"])
    own = pd.Series([path in paths for paths in frame["paths"]])
    changed = frame.copy()
    # The case is a row of each experiment that has it.
    for index in frame.index[own]:
        changed.at[index, "samples"] = tuple(
            one._replace(replicates=tuple(tuple(s / 6 for s in r) for r in one.replicates))
            for one in frame.at[index, "samples"]
        )
        for column in ("median_ms", "low_ms", "high_ms"):
            changed.at[index, column] = frame.at[index, column] / 6
    after = claims.evaluate(claims_file, changed)
    moved = {a.id for a, b in zip(before, after, strict=True) if a != b}
    resting = {v.id for v in before if v.method and path in [e["path"] for e in v.method.evidence]}
    assert moved <= resting
    assert moved == {
        "comprehensive.speedup.improved.b1.n4096",
        "comprehensive.finding.speedup.improved.n4096",
        "comprehensive.recommend.long.b1.n4096",
    }
    flipped = {
        a.id
        for a, b in zip(before, after, strict=True)
        if a.method and a.method.verdict != b.method.verdict
    }
    # The larger gain is more than was claimed as well.
    assert flipped == {"comprehensive.recommend.long.b1.n4096"}


# --- Command line ------------------------------------------------------------------------------


def test_command_line_writes_both_files_and_the_same_as_before(
    both_root, claims_file, verdicts, tmp_path, capsys
):
    out = tmp_path / "build" / "claims.json"
    arguments = ["--claims", str(CLAIMS), "--out", str(out), str(both_root)]
    assert cli.main(arguments) == 0
    assert "comprehensive: " in capsys.readouterr().out
    text = out.read_text()
    assert text == claims.to_json(claims_file, verdicts)
    evidence = json.loads(text)
    sorts = ("claim", "restatement", "consistency", "context")
    counted = sum(own[sort] for own in evidence["counts"].values() for sort in sorts)
    assert len(evidence["claims"]) == counted == 652
    assert [one["name"] for one in evidence["headlines"]] == list(claims_file.headlines)
    with out.with_suffix(".csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [line["id"] for line in table] == [claim["id"] for claim in evidence["claims"]]
    for side in claims.SIDES:
        given = [claim[side] and claim[side]["verdict"] for claim in evidence["claims"]]
        assert [line[f"{side}_verdict"] or None for line in table] == given
    assert out.with_suffix(".csv").read_text() == claims.to_csv(verdicts)
    assert sorted(p.name for p in out.parent.iterdir()) == ["claims.csv", "claims.json"]


def test_command_line_says_what_is_wrong_in_one_line(tmp_path, both_root, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("cards: {}\n")
    blocked = tmp_path / "file"
    blocked.write_text("")
    load(tmp_path, data(entry(SPEEDUP, 2.0)))
    good = str(tmp_path / "claims.yaml")
    for arguments, part in [
        (["--claims", str(bad), str(both_root)], "bad.yaml: top level"),
        (["--claims", good, str(tmp_path / "none")], "none: no such records folder"),
        (["--claims", good, "--out", str(blocked / "x.json"), str(both_root)], f"{blocked}: "),
    ]:
        assert cli.main(arguments) == 1
        message = capsys.readouterr().err
        assert message.startswith("claims: ") and message.count("\n") == 1 and part in message
