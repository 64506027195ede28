"""The data of the results page: every record, rounded as said, small, the same each time."""

import pytest

from analysis.pages import results_page


def unpacked(found):
    columns = found["columns"]
    count = len(columns["seq_len"])
    for name in columns:
        assert len(columns[name]) == count
    return [
        {
            name: found["texts"][column[i]]
            if name in found["in_texts"] and column[i] is not None
            else column[i]
            for name, column in columns.items()
        }
        for i in range(count)
    ]


def test_every_record_is_there_with_its_path_command_and_samples(laptop):
    rows = unpacked(results_page.data(laptop))
    assert len(rows) == len(laptop)
    for shown, (_, row) in zip(rows, laptop.iterrows(), strict=True):
        assert shown["path"].replace(results_page.STEM, shown["stem"]) == row["path"]
        assert shown["command"].replace(results_page.STEM, shown["stem"]) == row["command"]
        assert [len(samples) for samples in shown["samples"]] == [
            len(s.all) for s in row["samples"]
        ]
        assert shown["rounds"] == [one.round for one in row["samples"]]
        for kept, one in zip(shown["samples"], row["samples"], strict=True):
            assert kept == pytest.approx(one.all, rel=5e-6)
        if row["status"] == "ok":
            assert shown["median"] == pytest.approx(row["median_ms"], rel=1e-11)


def test_lines_are_drawn_through_one_record_a_length(laptop):
    rows = unpacked(results_page.data(laptop))
    keys = [tuple(row[name] for name in (*results_page.SETTING, "line", "seq_len")) for row in rows]
    assert len(keys) == len(set(keys))
    plain = [row for row in rows if row["line"] == row["system"]]
    assert len(plain) > len(rows) / 2


def test_the_page_is_the_same_each_time_and_needs_nothing_else(laptop):
    text = results_page.page(laptop)
    assert text == results_page.page(laptop.copy())
    assert "<!-- data -->" not in text and "<!-- script -->" not in text
    for outside in ("http://", "https://", '<link rel="stylesheet"', "import(", "fetch("):
        assert outside not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_gpu_tier_of_every_experiment_stays_small(both):
    assert len(results_page.page(both).encode()) < 3e6


def test_without_a_single_time_there_is_a_page_too(nothing, smoke):
    for frame in (nothing, smoke):
        rows = unpacked(results_page.data(frame))
        assert len(rows) == len(frame)
    assert {row["reason"] for row in unpacked(results_page.data(nothing))} == {
        "unsupported on purpose"
    }


def test_the_command_writes_it_or_says_in_a_line_why_not(laptop_root, tmp_path, capsys):
    out = tmp_path / "build" / "results.html"
    assert results_page.main(["--out", str(out), str(laptop_root)]) == 0
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert results_page.main(["--out", str(out), str(tmp_path / "none")]) == 1
    assert "no such records folder" in capsys.readouterr().err
