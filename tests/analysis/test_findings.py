"""Findings: what the file must say, the values behind each, and when one holds."""

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis.findings import __main__ as reproduction
from analysis.findings import findings as module
from analysis.findings.findings import HOLDS, MISSING, NOT, UNDECIDED, Finding, FindingsError
from analysis.rendering import numbers
from analysis.statistics import seeds
from analysis.statistics.intervals import Interval, speedup
from experiments import grid
from experiments.training.recipes import RECIPES
from tests.analysis import synthetic
from tests.analysis.trained_rows import trained

FILE = Path(__file__).parents[2] / "paper/findings.yaml"
SHAPE = {
    "batch": 1,
    "seq_len": 4096,
    "heads": 8,
    "head_dim": 64,
    "dtype": "float32",
    "is_causal": False,
    "pass": "forward",
    "segment_lengths": [1024, 2048, 2048],
    "dilation_rates": [1, 2, 4],
}


def finding(**changes) -> Finding:
    fields = {
        "id": "one",
        "title": "a title",
        "published": None,
        "quantity": "speedup",
        "system": {"variant": "dilated-sdpa"},
        "against": {"variant": "dense"},
        "shape": SHAPE,
        "above": 1,
    }
    return Finding.model_validate({**fields, **changes})


def rows_of(frame, machine=synthetic.CPU) -> dict:
    own = frame[frame["machine"] == machine]
    return {Path(row["path"]).stem: row for _, row in own.iterrows()}


@pytest.fixture(scope="module")
def rows(both):
    return rows_of(both)


RECALL = {
    "batch": 2,
    "seq_len": 32,
    "heads": 2,
    "head_dim": 8,
    "dtype": "float32",
    "is_causal": True,
    "pass": "forward_backward",
    "recipe": "recall-smoke",
}


def learnt_rows(one: Finding, rows: dict, *values, **fields) -> dict:
    """Trainings of each case of a finding, with these values, on the machine of `rows`."""
    machine = next(iter(rows.values())).to_dict()
    kept = ("trainings", "learning", "useful_flops", "recipe")
    return {
        case.name: pd.Series(
            machine | {k: v for k, v in trained("dense", own, **fields).items() if k in kept}
        )
        for case, own in zip(one.cases("cpu"), values, strict=True)
    }


def test_every_finding_of_the_file_is_measured_by_the_quick_cases_of_a_cpu():
    """Or by all of them, where it says so."""
    quick = {task.case for task in grid.tasks("laptop", quick=True)}
    full = {task.case for task in grid.tasks("laptop")}
    every = {task.case for task in grid.tasks("gpu")}
    found = module.load(FILE)
    assert len(found) >= 15
    for one in found:
        assert set(one.cases("cpu")) <= (quick if one.quick else full), one.id
    on_cards = [one.id for one in found if set(one.cases("cuda")) <= every]
    assert len(on_cards) >= 14


def test_a_speedup_is_that_of_the_two_cases_round_by_round(rows):
    one = finding()
    result = module.judge(one, rows, "cpu")
    system, dense = (rows[case.name] for case in one.cases("cpu"))
    expected = speedup(dense["samples"], system["samples"], dense["spread"])
    assert result.value == expected and result.rounds == 3
    times = [(12.0 * 16 + 0.3), (9.0 * 4**1.55 + 0.3)]  # synthetic.SPEED
    assert result.value.value == pytest.approx(times[0] / times[1], rel=1e-3)
    assert result.verdict == HOLDS
    assert set(result.paths) == {*system["paths"], *dense["paths"]}


def test_growth_is_the_exponent_over_the_lengths(rows):
    shape = {**SHAPE, "is_causal": True, "segment_lengths": [512, 1024, 2048]}
    changes = {"against": None, "shape": shape, "lengths": [1024, 2048, 4096, 8192]}
    one = finding(quantity="time growth", system={"variant": "dense"}, **changes)
    assert module.judge(one, rows, "cpu").value.value == pytest.approx(2.0, abs=0.02)
    memory = finding(quantity="memory growth", system={"variant": "dense"}, **changes)
    assert module.judge(memory, rows, "cpu").value.value == pytest.approx(1.0, abs=0.01)


def test_what_is_not_there_or_not_timed_is_named(rows, both):
    longer = finding(shape={**SHAPE, "seq_len": 12288})
    result = module.judge(longer, rows, "cpu")
    assert (result.verdict, result.value) == (MISSING, None)
    assert result.missing == tuple(case.name for case in longer.cases("cpu"))
    # `synthetic.write_all` has it out of time.
    late = {**SHAPE, "seq_len": 8192, "segment_lengths": [1024, 2048, 4096]}
    result = module.judge(finding(system={"variant": "dilated-gather"}, shape=late), rows, "cpu")
    assert result.missing[0].startswith("dilated-gather_b1_n8192")


def test_what_models_learnt_has_intervals_over_seeds(rows):
    base = {"system": {"variant": "dense"}, "against": None, "shape": RECALL}
    one = finding(**base, quantity="accuracy", above=0.95)
    assert one.cases("cpu")[0].name.endswith("_recall-smoke")
    own = learnt_rows(one, rows, [0.97, 0.98, 0.99], measure="accuracy", recipe="recall-smoke")
    result = module.judge(one, own, "cpu")
    expected = seeds.mean([0.97, 0.98, 0.99], RECIPES["recall-smoke"].seeds)
    assert expected.high > 1 == result.value.high
    assert (result.value.value, result.value.low) == (expected.value, expected.low)
    assert result.verdict == UNDECIDED  # 0.98 give or take 0.04
    few = module.judge(
        one, {name: row.to_dict() | {"rounds": 1} for name, row in own.items()}, "cpu"
    )
    assert reproduction._text(one, few) == "0.980 [0.941, 1.000]"
    alone = learnt_rows(one, rows, [0.99], measure="accuracy", recipe="recall-smoke")
    assert module.judge(one, alone, "cpu").verdict == UNDECIDED
    text = finding(
        **base | {"shape": RECALL | {"recipe": "text-smoke"}}, quantity="loss over order 3"
    )
    own = learnt_rows(text, rows, [1.5, 1.5, 1.5], of_three=3.0)
    assert module.judge(text, own, "cpu").value.value == 0.5


def test_a_difference_is_that_of_the_system_less_the_other(rows):
    window = {"pattern": "local_window", "sparsity": 0.9, "block_size": 2}
    one = finding(
        quantity="accuracy difference",
        system={"variant": "block-sparse-sdpa", **window},
        against={"variant": "dense"},
        shape=RECALL,
        above=-math.inf,
        below=-0.05,
    )
    assert (one.expected, one.unit) == ("below -0.05", "")
    sides = [0.4, 0.41, 0.42], [0.98, 0.99, 0.99]
    own = learnt_rows(one, rows, *sides, measure="accuracy", recipe="recall-smoke")
    result = module.judge(one, own, "cpu")
    assert result.value == seeds.difference(*sides, RECIPES["recall-smoke"].seeds)
    assert result.verdict == HOLDS
    other = one.model_copy(update={"below": -0.9})
    assert module.judge(other, own, "cpu").verdict == NOT


def test_a_finding_that_takes_all_cases_says_so():
    assert finding().words == "a title"
    assert finding(quick=False).words == "a title (full tier)"


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "verdict"),
    [
        (2, 3, 1, math.inf, HOLDS),
        (2, 3, 1, 4, HOLDS),
        (2, 3, 2.5, math.inf, UNDECIDED),
        (2, 3, 1, 2.5, UNDECIDED),
        (2, 3, 3, math.inf, NOT),
        (2, 3, 1, 2, NOT),
        (2, 3, 2, math.inf, UNDECIDED),
    ],
)
def test_it_holds_where_the_whole_interval_does(low, high, above, below, verdict):
    value = Interval(2.4, low, high, 0.95)
    assert module._verdict(finding(above=above, below=below), value) == verdict


def test_of_one_round_only_what_is_clear_counts(rows):
    one = finding()
    few = {
        name: row | {"samples": row["samples"][:1], "rounds": 1}
        for name, row in ((name, row.to_dict()) for name, row in rows.items())
    }
    ratio = module.judge(one, few, "cpu").value
    assert ratio.confidence == 0.0 and ratio.low == pytest.approx(ratio.value / 1.05)
    near = finding(above=ratio.value * 0.97)
    assert module.judge(near, few, "cpu").verdict == UNDECIDED
    assert reproduction._text(one, module.judge(one, few, "cpu")).endswith("x (one round)")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"quantity": "time growth"}, "against: expected for a speedup"),
        ({"lengths": [1024]}, "lengths: expected for a growth"),
        ({"above": 3, "below": 2}, "above: expected a bound below"),
        ({"system": {"variant": "nothing"}}, "variant 'nothing': is none"),
        ({"shape": {**SHAPE, "dtype": "float7"}}, "dtype='float7'"),
        ({"title": None}, "title"),
        ({"size": 3}, "size: Extra inputs"),
    ],
)
def test_a_wrong_entry_is_told_by_its_name_and_field(tmp_path, change, told):
    entry = {"id": "one", **finding().model_dump(exclude={"above", "below"}), **change}
    path = tmp_path / "findings.yaml"
    path.write_text(yaml.safe_dump([entry]))
    with pytest.raises(FindingsError, match="findings.yaml: one: ") as error:
        module.load(path)
    assert told in str(error.value)


def test_a_name_stands_once_and_the_file_is_a_list(tmp_path):
    path = tmp_path / "findings.yaml"
    entry = finding().model_dump(exclude={"above", "below"})
    path.write_text(yaml.safe_dump([entry, entry]))
    with pytest.raises(FindingsError, match="one: is there twice"):
        module.load(path)
    for text in ("", "a: 1", "- [", "[]"):
        path.write_text(text)
        with pytest.raises(FindingsError, match="not YAML|expected a list"):
            module.load(path)


def test_the_page_sets_published_beside_local(both_root, once, tmp_path, capsys):
    local = once.folder / "findings" / "local"
    synthetic.write(local, "comprehensive", "laptop")
    out = tmp_path / "build/reproduction"
    out.parent.mkdir()
    assert reproduction.main(["--out", str(out), str(both_root), str(local)]) == 0
    text = out.with_suffix(".md").read_text()
    assert capsys.readouterr().out == text
    headlines = [line for line in text.splitlines() if line.startswith("**")]
    assert len(headlines) == 2
    assert "by the published records" in headlines[0]
    assert (
        "by the records of this machine (2-core Maker Model; 3 rounds on 3 occasions)"
        in headlines[1]
    )
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {7}
    by = {row[0].removeprefix("| "): row[1:] for row in rows}
    held = by["Dilated attention, computed exactly, is faster than dense"]
    # The local ones are the same synthetic times: dense 768.3 ms, dilated 226.2 ms.
    assert held[4].startswith("3.4") and held[5].rstrip(" |") == HOLDS
    found = numbers.read(out.parent / "numbers/findings.json")
    assert found["findings.count.total"]["value"] == len(rows) - 1
    assert found["findings.improved-over-plain.published"]["text"] == "10.82"
    gain = found["findings.dilated-over-dense"]
    assert gain["low"] < gain["value"] < gain["high"] and gain["device"] == "A Big GPU"
    page = out.with_suffix(".html").read_text()
    assert page.count('<tr id="') == len(rows) - 1
    assert "dilated-sdpa_b1_n8192_h8_d64_float32_forward_w1024+2048+4096" in page.replace(
        "%2B", "+"
    )
