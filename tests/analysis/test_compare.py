"""Two sets of records side by side: what differs, ratios case by case, and what is kept apart."""

import json
import math
import shutil
from dataclasses import replace

import pytest

from analysis.comparison import forest, pairs, report
from analysis.comparison.pairs import OTHER, SAME, TORCH
from analysis.records import frame as records
from experiments import rounds
from experiments.__main__ import main
from experiments.schema import load as record_of
from tests.analysis import synthetic, synthetic_cards, two_machines
from tests.analysis.two_machines import LAPTOP, copied, slower

CHANGED, COMMIT = "0123456789abcdef", "f" * 40


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """The machine's folder with three rounds of the backends."""
    return synthetic.write(tmp_path_factory.mktemp("a") / "local", "backends") / synthetic.CPU


def compared(backends, tmp_path, change, machine=two_machines.OTHER):
    return report.compare(backends, copied(backends, tmp_path / "b", machine, change))


def halved(record: dict) -> None:
    slower(record, 0.5)


def mean_of(found, system: str, code: str):
    (mean,) = (one for one in found.means if (one.system, one.code) == (system, code))
    return mean


def test_a_machine_twice_as_fast_has_a_ratio_of_two_within_its_interval(backends, tmp_path):
    found = compared(backends, tmp_path, halved)
    assert len(found.timed) == len(found.common) == len([*backends.glob("*01T*/*.json")]) > 20
    for one in (*found.timed, *found.means):
        assert one.ratio.value == pytest.approx(2.0)
        assert 1 < one.ratio.low < 2.0 < one.ratio.high < 4
    assert sum(len(one.pairs) for one in found.means if one.system) == len(found.timed)
    lines = report.text(found).splitlines()
    mean = mean_of(found, "dense-flex", SAME)
    told = f"[{mean.ratio.low:.2f}, {mean.ratio.high:.2f}]"
    assert f"dense-flex, geometric mean of {len(mean.pairs)}: 2.00 {told} *" in lines


def test_rows_that_differ_are_told_and_equal_ones_are_not(backends, tmp_path):
    more = replace(two_machines.OTHER, cores=4, host=replace(LAPTOP.host, family=26))

    def change(record):
        record["software"] |= {"torch": "2.14.0", "triton": "3.7.0"}
        for name in ("memory_bytes", "device_memory_bytes"):
            record["machine"][name] += 4096

    found = compared(backends, tmp_path, change, more).differences
    differing = {one.name: (one.a, one.b) for one in found.differing}
    assert differing == {
        "processor": (LAPTOP.cpu, "Another CPU"),
        "CPU family, model, stepping": ("6, 143, 8", "26, 143, 8"),
        "cores": ("2", "4"),
        "torch": ("2.13.0", "2.14.0"),
        "triton": ("none", "3.7.0"),
        "start of the host": (LAPTOP.host.id, more.host.id),
    }
    same = {one.name: one.a for one in found.same}
    assert same["numpy"] == "2.4.6" and same["memory"] == "16.0 GiB" and not found.unknown
    assert not set(same) & set(differing)


def test_what_a_side_does_not_record_is_neither_the_same_nor_different(backends, tmp_path):
    def change(record):
        record["software"]["git_commit"] = record["software"]["git_dirty"] = None

    found = compared(backends, tmp_path, change)
    assert [(one.name, one.b) for one in found.differences.unknown] == [
        ("git commit", "not recorded")
    ]
    told = {one.name for one in (*found.differences.same, *found.differences.differing)}
    assert "git commit" not in told
    assert "not recorded everywhere: git commit (0123456789 / not recorded)" in report.text(found)


def test_another_backend_is_shown_and_is_in_no_mean(backends, tmp_path):
    def change(record):
        halved(record)
        if record["variant"] == "dense-flex" and record["case"]["seq_len"] == 2048:
            slower(record, 1 / 4)
            record["backend"] = "math"

    found = compared(backends, tmp_path, change)
    changed = [one for one in found.timed if one.a["system"] == "dense-flex"
               and one.a["seq_len"] == 2048]  # fmt: skip
    assert found.of_other_backends == changed and changed
    assert all(one.ratio.value == pytest.approx(8.0) for one in changed)
    assert all(one.ratio.value == pytest.approx(2.0) for one in found.means)
    lines = report.text(found).splitlines()
    apart = lines[lines.index("another backend, in no mean (A / B):") + 1 :]
    assert len(apart) == len(changed)
    assert all(": 8.00 [" in line and "(flex / math; the same code)" in line for line in apart)


def test_code_that_differs_has_a_mean_of_its_own_and_is_counted(backends, tmp_path):
    def change(record):
        halved(record)
        if record["variant"] == "dense-flex":
            slower(record, 0.5)
            record["software"]["code_digest"] = CHANGED
            record["software"]["git_commit"] = COMMIT

    found = compared(backends, tmp_path, change)
    count = sum(one.system == "dense-flex" for one in found.timed)
    assert 0 < count < len(found.timed)
    assert mean_of(found, "", SAME).ratio.value == pytest.approx(2.0)
    assert mean_of(found, "", OTHER).ratio.value == pytest.approx(4.0)
    assert len(mean_of(found, "", OTHER).pairs) == count
    said = found.code_in_words()
    assert said.startswith(f"{len(found.timed) - count} of {len(found.timed)} cases were measured")
    assert f"{count} ratios are of code that differs" in said
    assert "no comparison of hardware" in said
    titles = [ax.get_title(loc="left") for ax in forest.forest(found).axes]
    assert titles == [pairs.HEADINGS[SAME], pairs.HEADINGS[OTHER]]


def test_an_upgrade_of_torch_by_one_commit_is_told_from_other_code(backends, tmp_path):
    def change(record):
        record["software"] |= {"torch": "2.14.0", "code_digest": CHANGED}

    def dirty(record):
        change(record)
        record["software"]["git_dirty"] = True

    found = compared(backends, tmp_path, change, LAPTOP)
    assert {one.code for one in found.common} == {TORCH}
    assert f"{len(found.timed)} were by the same commit with another torch" in found.code_in_words()
    found = compared(backends, tmp_path / "dirty", dirty, LAPTOP)
    assert {one.code for one in found.common} == {OTHER}


def test_what_earlier_code_measured_is_compared_where_it_was_set_aside(backends, tmp_path):
    def earlier(record):
        slower(record, 2.0)
        record["software"] |= {"torch": "2.12.0", "code_digest": CHANGED}

    now = copied(backends, tmp_path / "local", LAPTOP, earlier)
    # As a run does before it measures a case anew; here with code in between.
    for path in [*now.rglob("*.json")]:
        case = record_of(path).to_case()
        rounds.set_aside_outdated(path, case)
        if "dense-flex" in path.name:
            shutil.copy(next((now / "outdated").rglob(f"{case.name}@*")), path)
            record = json.loads(path.read_text())
            slower(record, 3)
            record["started_at"] = record["started_at"].replace(":05Z", ":02Z")
            record["software"]["code_digest"] = "e" * 16
            path.write_text(json.dumps(record))
            rounds.set_aside_outdated(path, case)
    assert not [*now.glob("*01T*/*.json")]
    copied(backends, tmp_path / "local", LAPTOP)
    found = report.compare(now / "outdated", now)
    assert len(found.timed) == len(found.common) > 20
    assert found.only("a") == found.only("b") == []
    assert mean_of(found, "", TORCH).ratio.value == pytest.approx(2.0)
    assert [(one.name, one.a, one.b) for one in found.differences.differing] == [
        ("torch", "2.12.0", "2.13.0")
    ]


def test_hardware_and_software_that_both_differ_are_not_told_apart(backends, tmp_path):
    told = "Hardware and software both differ"
    change = lambda record: record["software"].update(numpy="2.5.0")  # noqa: E731
    assert told in compared(backends, tmp_path, change).code_in_words()
    assert told not in compared(backends, tmp_path / "c", halved).code_in_words()


def test_what_was_measured_differently_is_left_out_with_the_reason(backends, tmp_path):
    def change(record):
        if record["variant"] == "dense-math":
            record["tier"] = "smoke"
            record["command"] = record["command"].replace("laptop", "smoke")

    found = compared(backends, tmp_path, change)
    assert {one.system for one in found.left_out} == {"dense-math"}
    assert {one.setting for one in found.left_out} == {"limits of the tier: laptop / smoke"}
    assert not any(one.system == "dense-math" for one in (*found.timed, *found.means))
    assert f"left out, as what was measured differs: {len(found.left_out)}" in report.text(found)


def test_a_card_timed_otherwise_is_left_out(tmp_path):
    chosen = [("backends", case) for case in synthetic.cases("backends", "gpu")[:12]]
    h100, h200 = synthetic_cards.H100, synthetic_cards.H200
    for root, card in (("a", h100), ("b", h200)):
        synthetic_cards.write(tmp_path / root, chosen, card, 2)
    folders = (tmp_path / "a" / h100.id, tmp_path / "b" / h200.id)
    found = report.compare(*folders)
    timed = len(found.timed)
    assert timed > 3 and not found.left_out
    differing = {one.name for one in found.differences.differing}
    assert {"device", "device memory"} <= differing and "processor" not in differing
    for path in folders[1].rglob("*.json"):
        record = json.loads(path.read_text())
        for one in record["replicates"]:
            one |= {"timed_by": "queued events", "host_ms": 0.01}
        path.write_text(json.dumps(record))
    found = report.compare(*folders)
    assert len(found.left_out) == timed and not found.timed
    assert {one.setting for one in found.left_out} == {"timed by: not recorded / queued events"}
    assert found.code_in_words() == "No case was timed on both sides."


def test_what_one_side_alone_has_or_timed_is_listed(backends, tmp_path):
    other = copied(backends, tmp_path / "b", two_machines.OTHER)
    gone = {path.name for path in other.rglob("dense-eager_*")}
    for path in other.rglob("dense-eager_*"):
        path.unlink()
    lost = {path.name for path in other.rglob("dense-math_*")}
    for path in other.rglob("dense-math_*"):
        record = json.loads(path.read_text())
        record |= {"status": "oom", "reason": "out", "replicates": [], "error": None}
        path.write_text(json.dumps(record | {"backend": None, "ceilings": None}))
    found = report.compare(backends, other)
    assert len(found.only("a")) == len(gone) > 0 and not found.only("b")
    assert {f"{one.case.name}.json" for one in found.of_one_side} == lost
    assert {report.outcomes(one) for one in found.of_one_side} == {"timed / out of memory"}
    text = report.text(found)
    assert f"{len(found.common)} in both, {len(gone)} only in A, 0 only in B" in text
    assert f"only in A: dense-eager {len(gone)}" in text
    assert f"timed on one side only: {len(lost)}" in text


@pytest.fixture
def home(backends, tmp_path, monkeypatch):
    """A repository with published records of two machines, in which it runs."""
    (tmp_path / "Snakefile").touch()
    published = tmp_path / "results" / "published"
    for machine, change in ((LAPTOP, lambda _: None), (two_machines.OTHER, halved)):
        copied(backends, published, machine, change)
    synthetic.vouch(published)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_machines_are_called_by_their_ids_and_errors_are_one_line(home, capsys):
    ids = (LAPTOP.id, two_machines.OTHER.id)
    assert main(["compare", *ids]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"A: 2-core Maker Model, {ids[0]}: ")
    assert "The same code on both sides; geometric mean of " in "\n".join(lines)
    listed = ", ".join(sorted(ids))
    for given, told in (
        (("nowhere", ids[1]), f"nowhere: no such folder, and no machine of that id; expected a "
         f"folder of records or one of the machines {listed}"),
        (("results/published", ids[1]), "results/published: holds records of 2 machines, expected "
         f"those of one: {listed}"),
    ):  # fmt: skip
        assert main(["compare", *given]) == 2
        assert capsys.readouterr().err == f"error: {told}\n"
    assert main(["compare", ids[0], ids[0]]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: {ids[0]} and {ids[0]}: have ")
    assert "records in common" in told


def test_labels_tell_the_cases_of_a_system_apart(laptop_root, tmp_path):
    other = copied(laptop_root / synthetic.CPU, tmp_path / "b", two_machines.OTHER)
    found = report.compare(laptop_root / synthetic.CPU, other)
    labels = [(one.system, one.label) for one in found.common]
    assert len(labels) == len({*labels}) > 300


def test_a_case_is_compared_with_itself_by_its_blocks(laptop_root, tmp_path):
    other = shutil.copytree(laptop_root, tmp_path / "published")
    changed = list(other.rglob("block-sparse_*-0.95-*.json"))
    for path in changed:
        data = json.loads(path.read_text())
        halved(data)
        path.write_text(json.dumps(data))
    synthetic.vouch(other)
    found = report.compare(laptop_root, other)
    faster = [one for one in found.timed if one.ratio.low > 1]
    assert len(faster) == len({path.name for path in changed})
    assert all(one.system == "block-sparse@95" for one in faster)
    assert all(one.ratio.value == pytest.approx(2.0) for one in faster)
    assert sum("random blocks of 64" in one.label for one in faster) == 1
    rest = [one.ratio.value for one in found.timed if one not in faster]
    assert rest == pytest.approx([1.0] * len(rest))


def test_of_two_rounds_there_are_ratios_without_an_interval(laptop_root):
    machine = laptop_root / synthetic.CPU
    first, last = (machine / synthetic.round_name(number) for number in (1, 3))
    found = report.compare(first, last)
    ratios = [one.ratio.value for one in found.timed]
    low, high = (synthetic.COMMON[0] - synthetic.COMMON[2] + sign * 0.011 for sign in (-1, 1))
    assert len(ratios) > 100
    assert all(math.exp(low) <= ratio <= math.exp(high) for ratio in ratios)
    assert all(math.isnan(one.ratio.low) for one in (*found.timed, *found.means))
    assert mean_of(found, "", SAME).ratio.value == pytest.approx(math.exp(-0.04), abs=0.003)
    assert report.NO_INTERVAL in report.text(found)


def test_nothing_in_common_is_an_error(tmp_path):
    synthetic.write(tmp_path / "a", "backends")
    synthetic.write(tmp_path / "b", "block_sparse")
    with pytest.raises(records.RecordsError, match="no case in common"):
        report.compare(tmp_path / "a", tmp_path / "b")


def test_between_sets_of_one_hour_only_rounds_differ(tmp_path):
    root = synthetic.write(tmp_path / "published", "backends")

    def mean(*hours):
        sides = []
        for side, times in zip("ab", (hours[:2], hours[2:]), strict=True):
            for number, hour in zip((1, 2), times, strict=True):
                folder = root / synthetic.CPU / synthetic.round_name(number)
                root_of_side = tmp_path / "-".join(map(str, hours)) / side / "local"
                began = f"2026-01-01T{hour:02}{10 * number:02}00Z"
                target = root_of_side / synthetic.CPU / began
                target.mkdir(parents=True)
                for path in folder.glob("*.json"):
                    minutes = f"{hour:02}:{10 * number:02}"
                    data = {
                        **json.loads(path.read_text()),
                        "started_at": f"2026-01-01T{minutes}:00Z",
                    }
                    (target / path.name).write_text(json.dumps(data))
            sides.append(root_of_side)
        return mean_of(report.compare(*sides), "", SAME).ratio

    together, apart = mean(3, 3, 3, 3), mean(3, 3, 5, 5)
    assert together.value == apart.value == pytest.approx(1.0)
    assert apart.high > 1.3 * together.high
