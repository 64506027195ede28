"""A card's campaign that was cut short, beside a CPU's records: which is reported, and how."""

import json
import math
from pathlib import Path

import pytest
from matplotlib.text import Text

from analysis import catalogue, claims
from analysis.advise.answer import advise
from analysis.advise.question import Question
from analysis.advise.words import in_words
from analysis.documents import readme
from analysis.findings import __main__ as reproduction
from analysis.findings import findings
from analysis.records import frame as records
from analysis.rendering import figure_csv
from analysis.rendering.numbers import join, lookup
from analysis.selection import published, reporting_machine, views
from analysis.standard import number_entries
from analysis.standard.by_machine import ByMachine
from analysis.statistics import intervals
from experiments.case import Case
from tests.analysis import synthetic, synthetic_cards
from tests.analysis.synthetic_cards import H100, H200

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ("comprehensive", "block_sparse", "ring", "extreme", "as_published")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    root = tmp_path_factory.mktemp("half") / "published"
    for experiment in EXPERIMENTS:
        synthetic.write(root, experiment)
    chosen = [one for one in synthetic_cards.half_full() if one[0] in EXPERIMENTS]
    synthetic_cards.write(root, chosen, H100, 1)
    return records.load(root)


@pytest.fixture(scope="module")
def reported(half):
    return {e: catalogue.numbers(half, e) for e in EXPERIMENTS}


def at_8192(variant: str) -> Case:
    return next(
        case
        for case in synthetic.cases("comprehensive", "gpu")
        if (case.variant, case.batch, case.seq_len) == (variant, 1, 8192)
    )


def test_a_card_is_reported_before_a_cpu_and_prints_no_interval_of_one_round(reported):
    found = reported["comprehensive"]["comprehensive.vs_dense.dilated-sdpa.b1.n8192"]
    times = [synthetic_cards.median_ms(at_8192(v), H100) for v in ("dense", "dilated-sdpa")]
    assert found["value"] == pytest.approx(times[0] / times[1])
    assert (found["low"], found["high"]) == (None, None)
    assert found["text"] == found["bare"] == f"{times[0] / times[1]:.2f}"
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    word = reported["comprehensive"]["comprehensive.vs_dense.dilated-sdpa.b1.n8192.word"]
    assert word["value"] == "in one round faster than"


def test_what_only_the_cpu_has_is_reported_with_its_name(reported):
    ring = reported["ring"]
    key = "ring.strong.ring-distributed"
    assert ring["ring.machine.device"]["text"] == "NVIDIA H100 80GB HBM3"
    assert ring[f"{key}.speedup"]["value"] == pytest.approx(2**0.9)
    assert ring[f"{key}.speedup"]["text"].endswith("] (2-core Maker Model, float32)")
    assert ring[f"{key}.speedup"]["device"] == "2-core Maker Model"
    # All of a statement is of one machine, though the card has unsupported cases at 8 ranks.
    assert (ring[f"{key}.ranks"]["value"], ring[f"{key}.each"]["text"]) == (2, "core")


def test_no_ratio_and_no_fit_mixes_machines(half, reported):
    machine = {path: row["machine"] for _, row in half.iterrows() for path in row["paths"]}
    mixed = [
        key
        for found in reported.values()
        for key, entry in found.items()
        if len({machine[path] for path in entry["records"]}) > 1
    ]
    assert mixed == []


def test_every_measured_number_of_another_machine_names_it(half, reported):
    machine = {path: row["machine"] for _, row in half.iterrows() for path in row["paths"]}
    for experiment, found in reported.items():
        for key, entry in found.items():
            here = {machine[path] for path in entry["records"]} <= {H100.id}
            if here and not key.startswith(f"{experiment}.error."):
                assert "CPU" not in entry["text"], key


def test_a_crossover_of_the_cpu_says_so(reported):
    found = reported["block_sparse"]["block_sparse.crossover.block-sparse@95"]
    assert found["value"] == pytest.approx(1024 * (39.7 / 11.25) ** 0.5, rel=0.02)
    assert found["text"].endswith(" tokens (2-core Maker Model, float32, 1K–16K tokens)")
    assert reported["block_sparse"]["block_sparse.series.longest"]["device"] == "2-core Maker Model"


def test_a_named_machine_is_the_only_one(half):
    found = catalogue.numbers(half, "ring", H100.id)
    assert found["ring.strong.ring-distributed.speedup"]["text"] == "–"


def test_cards_come_before_cpus_and_the_fuller_one_first(half, tmp_path):
    cases = [("comprehensive", case) for case in synthetic.cases("comprehensive", "gpu")[:5]]
    synthetic_cards.write(tmp_path / "published", cases, H200, 3)
    synthetic_cards.write(tmp_path / "published", cases[:2], H100, 3)
    synthetic.write(tmp_path / "published", "comprehensive")
    frame = records.load(tmp_path / "published")
    order = [H200.id, H100.id, synthetic.CPU]
    assert reporting_machine.order(frame, "comprehensive") == order
    assert reporting_machine.order(frame, "comprehensive", H100.id) == [H100.id]


@pytest.fixture(scope="module")
def of_findings(half):
    """Their number entries: on the card what was measured there, else on the laptop."""
    known = findings.load(ROOT / "paper/findings.yaml")
    (column,) = reproduction.columns(known, {"published": half})
    return reproduction.entries(known, column, half)


@pytest.fixture(scope="module")
def judged(half):
    """The verdicts by the same records."""
    claims_file = claims.load(published.CLAIMS)
    return json.loads(claims.to_json(claims_file, claims.evaluate(claims_file, half)))


def test_the_readme_names_the_device_of_each_number(of_findings, reported, judged, tmp_path):
    numbers = {key: value for found in reported.values() for key, value in found.items()}
    (tmp_path / "claims.json").write_text(json.dumps(judged))
    numbers |= of_findings | join([tmp_path / "claims.json"])
    template = (ROOT / "paper/readme.md.j2").read_text()
    marks = "<!-- found -->\n<!-- /found -->"
    text = " ".join(readme.fill(marks, template, numbers, judged, only_cpus=False).split())
    gain = lookup(numbers, "findings.dilated-over-dense", "")
    assert f"fused attention ImprovedDilatedAttention {gain} times at 8192 tokens" in text
    assert "(NVIDIA H100 80GB" in text
    assert "on CPUs so far" not in text
    assert text.count("| **") + text.count("| –") >= 10
    of_code = [one for one in judged["headlines"] if not one["of_paper"]]
    assert 40 < len(of_code) < len(judged["headlines"])
    assert f"Of {len(of_code)} headline claims the published code meets" in text
    assert "on CPUs so far" in " ".join(
        readme.fill(marks, template, numbers, judged, only_cpus=True).split()
    )


def test_a_table_keeps_what_the_cpu_measured_in_a_block_of_its_own(half):
    made = catalogue.tables("comprehensive")["summary-2048"](half, "auto")
    assert list(dict.fromkeys(made.machines)) == [
        "NVIDIA H100 80GB HBM3", "2-core Maker Model",
    ]  # fmt: skip
    lines = made.to_csv().splitlines()
    assert lines[0].startswith("Machine,Implementation,")
    own = [line for line in lines if line.startswith("2-core Maker Model")]
    assert len(own) == sum(name.startswith("2-core") for name in made.machines) > 0
    assert "| *2-core Maker Model* |" in made.to_markdown()
    typst = made.to_typst()
    assert 'emph("2-core Maker Model")' in typst
    assert 'table.header("Implementation", "Time\\npublished' in typst
    assert r"\emph{2-core Maker Model}" in made.to_latex("x")
    # Where nothing is of the card, the CPU's note stands.
    strong = catalogue.tables("ring")["strong"](half, "auto")
    assert strong.note.startswith("Measured: 2-core Maker Model, real ranks; a rank is one core")


def test_a_full_card_needs_no_second_card(tmp_path):
    cases = [("comprehensive", case) for case in synthetic.cases("comprehensive", "gpu")[:63]]
    for card in (H100, H200):
        synthetic_cards.write(tmp_path / "published", cases, card, 2)
    made = catalogue.tables("comprehensive")["times"](records.load(tmp_path / "published"), "auto")
    assert made.machines == () and "H200" not in made.note


def test_times_of_one_round_have_no_interval_and_those_of_three_have(half):
    card = half[(half["machine"] == H100.id) & (half["status"] == "ok")]
    assert card["low_ms"].isna().all() and card["median_ms"].notna().all()
    host = half[half["machine"] == synthetic.CPU]
    assert (host["low_ms"] < host["median_ms"]).all()
    rows = [card[card["variant"] == v].iloc[0] for v in ("dense", "dilated-sdpa")]
    gain = views.ratio(*rows)
    assert math.isnan(gain.low) and gain.confidence == 0
    assert number_entries.time(rows[0])["text"].count("[") == 0


def test_a_verdict_of_one_round_says_so_and_needs_a_clear_direction(half):
    claims_file = claims.load(published.CLAIMS)
    by = {verdict.id: verdict for verdict in claims.evaluate(claims_file, half)}
    found = by["comprehensive.speedup.improved.b1.n8192"].method
    times = [
        synthetic_cards.median_ms(at_8192(v), H100) for v in ("dilated-gather", "dilated-sdpa")
    ]
    assert found.reason.startswith(f"{times[0] / times[1]:.4g} (one round) times as fast")
    assert H100.id in found.reason
    assert (found.measured["low"], found.measured["high"]) == (None, None)


def test_advice_of_one_round_prints_no_interval_and_tells_close_ones_not_apart(half):
    options = {"seq_len": 16384, "heads": 8, "head_dim": 64, "device": "H100", "batch": 1}
    question = Question(**options, dtype="float16", is_causal=False)
    ranked = advise(half, question).ranked
    first, second = ranked[0].time, ranked[1].time
    assert (first.confidence, first.high / first.value) == (0, pytest.approx(1.05, abs=0.03))
    assert ranked[1].ties == (second.value / first.value < 1.05)
    text = in_words(advise(half, question))
    assert "ms, measured)" in text and "[" not in text and "Without brackets: of one" in text


def test_the_labels_of_a_table_tell_its_rows_apart(half):
    # Else a block of another machine loses the rows that are called alike.
    made = [
        make
        for experiment in EXPERIMENTS
        for make in catalogue.tables(experiment).values()
        if isinstance(make, ByMachine)
    ]
    assert len(made) == 28
    for make in made:
        for machine in set(half[half["experiment"] == make.experiment]["machine"]):
            table = make(half, machine)
            rows = [row[: make.labels] for row in table.rows]
            assert len(set(rows)) == len(rows), (table.caption, machine)


@pytest.mark.parametrize(("name", "experiment"), [
    ("speedup", "comprehensive"), ("grid", "comprehensive"), ("plots", "as_published"),
    ("speedups", "as_published"),
])  # fmt: skip
def test_a_figure_of_one_machine_is_of_the_one_with_most_to_show(half, name, experiment):
    card, cpu = reporting_machine.order(half, experiment)
    shown = {
        machine: figure_csv.to_csv(catalogue.figures(experiment)[name](half, experiment, machine))
        for machine in ("auto", card, cpu)
    }
    assert shown["auto"] == shown[cpu] != shown[card]


def test_an_interval_without_bounds_prints_none():
    assert f"{intervals.Interval(0.5, math.nan, math.nan, 0.0):.3f}" == "0.500"
    assert f"{intervals.Interval(0.5, 0.25, 1, 0.95):.2f}" == "0.50 [0.25, 1.00]"


def test_of_a_card_alone_nothing_is_said_of_a_cpu(half):
    own = half[half["machine"] == H100.id]
    for experiment in EXPERIMENTS:
        for name, make in catalogue.tables(experiment).items():
            made = make(own, "auto")
            assert "CPU" not in f"{made.caption} {made.note}", (experiment, name)
        for name, draw in catalogue.figures(experiment).items():
            figure = draw(own, experiment)
            texts = [text.get_text() for text in figure.findobj(Text)]
            assert not any("CPU" in text for text in texts), (experiment, name)
