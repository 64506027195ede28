"""Tables: published layout, the right medians, dashes for what is missing, three forms."""

import csv
import io

import pytest

from analysis import table, tables
from tests.analysis import synthetic


def _rows(made: table.Table) -> list[dict]:
    return list(csv.DictReader(io.StringIO(made.to_csv())))


def _median(experiment, variant, batch, seq_len):
    case = next(
        c
        for c in synthetic.cases(experiment, "laptop")
        if (c.variant, c.batch, c.seq_len) == (variant, batch, seq_len) and c.heads != 8
    )
    return synthetic.median_ms(case, synthetic.CPU)


def test_result_tables_of_dilated_hold_published_and_measured(laptop):
    for name, batch, n, published in (("small", 1, 2048, "6.16 ± 1.23"),
                                      ("medium", 2, 4096, "36.15 ± 6.89")):  # fmt: skip
        made = tables.TABLES["dilated"][name](laptop, "auto")
        first = _rows(made)[0]
        assert first["Implementation"] == "DilatedAttention"
        assert first["Time published (ms)"] == published
        median = _median("dilated", "dilated-gather", batch, n)
        assert float(first["Time measured (ms)"]) == pytest.approx(median)
        assert float(first["Tokens/s measured"]) == pytest.approx(1000 * batch * n / median)
    unmeasured = _rows(tables.TABLES["dilated"]["large"](laptop, "auto"))[0]
    assert unmeasured["Time published (ms)"] == "593.67 ± 443.92"
    assert unmeasured["Time measured (ms)"] == ""


def test_times_of_comprehensive_leave_out_lines_without_records(laptop):
    rows = _rows(tables.TABLES["comprehensive"]["times"](laptop, "auto"))
    assert [row["Time (ms)"] for row in rows].count("published") == 9
    assert [row["Time (ms)"] for row in rows].count("measured") == 3
    assert rows[0]["RingDilatedAttention"] == "2.02"
    assert rows[1]["RingDilatedAttention"] == ""


def test_the_summary_is_in_the_published_order(laptop):
    made = tables.TABLES["comprehensive"]["summary-8192"](laptop, "auto")
    names = [row["Implementation"] for row in _rows(made)]
    assert names[:3] == [
        "RingDilatedAttention",
        "ImprovedDilatedAttention",
        "ImprovedMultiheadDilatedAttention",
    ]
    improved = _rows(made)[1]
    assert improved["Speed-up published"] == "10.82"
    low, value, high = (float(improved[f"Speed-up measured{end}"]) for end in (" low", "", " high"))
    assert low < value < high
    assert value == pytest.approx(3.69, abs=0.01)


def test_the_cpu_comparison_needs_both_kinds_of_machine(laptop, both):
    alone = tables.TABLES["dilated"]["cpu"](laptop, "auto")
    assert "GPU: no record" in alone.note
    assert alone.rows[1][1] is None
    ratio = tables.TABLES["dilated"]["cpu"](both, "auto").rows[1][3]
    assert ratio.value == pytest.approx(40)


def test_cases_without_a_time_are_listed_with_their_reason(laptop, both):
    assert tables.TABLES["dilated"]["censored"](laptop, "auto").note == "Every case was timed."
    listed = tables.TABLES["comprehensive"]["censored"](both, "auto").rows
    assert [(row[5], row[6]) for row in listed] == [
        ("oom", "oom on purpose"),
        ("timeout", "timeout on purpose"),
    ]


def test_training_is_compared_with_dense_at_the_same_case(laptop):
    rows = tables.TABLES["dilated"]["training"](laptop, "auto").rows
    by = {row[0]: row for row in rows}
    assert by["PyTorch baseline"][-1] is None
    assert by["ImprovedDilatedAttention"][-1].value > 1


@pytest.mark.parametrize("experiment", tables.TABLES)
def test_every_table_is_made_of_two_machines_and_of_smoke_records(both, smoke, experiment):
    for frame in (both, smoke):
        for make in tables.TABLES[experiment].values():
            made = make(frame, "auto")
            assert all(len(row) == len(made.columns) for row in made.rows)
            assert made.to_markdown().count("\n|") == len(made.rows) + 2
            assert made.to_typst().startswith("#figure(kind: table")


def test_unknown_cells_are_dashes_and_typst_reads_no_markup(tmp_path):
    made = table.Table("A *caption*", ("a", "b"), [("#panic()", None), ('"', 0.0)])
    assert "| #panic() | – |" in made.to_markdown()
    assert '"#panic()", "–",' in made.to_typst()
    assert '"\\"", "0",' in made.to_typst()
    table.save(made, tmp_path / "t" / "x-y")
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["x-y.csv", "x-y.md", "x-y.typ"]
