"""Tables: published layout, the right medians, dashes for what is missing, three forms."""

import csv
import io
import re
import shutil
import subprocess

import numpy as np
import pytest

from analysis import catalogue
from analysis.experiments.block_sparse.tables import crossing
from analysis.rendering import escaping, table
from analysis.selection import published
from analysis.statistics import scaling
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
    for name, batch, n, figure in (("small", 1, 2048, "6.16 ± 1.23"),
                                      ("medium", 2, 4096, "36.15 ± 6.89")):  # fmt: skip
        made = catalogue.tables("dilated")[name](laptop, "auto")
        first = _rows(made)[0]
        assert first["Implementation"] == "DilatedAttention"
        assert first["Time published (ms)"] == figure
        median = _median("dilated", "dilated-gather", batch, n)
        assert float(first["Time measured (ms)"]) == pytest.approx(median)
        assert float(first["Tokens/s measured"]) == pytest.approx(1000 * batch * n / median)
    unmeasured = _rows(catalogue.tables("dilated")["large"](laptop, "auto"))[0]
    assert unmeasured["Time published (ms)"] == "593.67 ± 443.92"
    assert unmeasured["Time measured (ms)"] == ""


def test_times_of_comprehensive_stand_beside_all_published_ones(laptop):
    rows = _rows(catalogue.tables("comprehensive")["times"](laptop, "auto"))
    assert [row["Time (ms)"] for row in rows].count("published") == 9
    assert [row["Time (ms)"] for row in rows].count("measured") == 9
    assert rows[0]["RingDilatedAttention"] == "2.02"
    assert float(rows[1]["RingDilatedAttention"]) == pytest.approx(0.3 + 9 * 2**1.55, rel=1e-3)


def test_the_summary_is_in_the_published_order(laptop):
    made = catalogue.tables("comprehensive")["summary-8192"](laptop, "auto")
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
    alone = catalogue.tables("dilated")["cpu"](laptop, "auto")
    assert "GPU: no record" in alone.note
    assert alone.rows[1][1] is None
    ratio = catalogue.tables("dilated")["cpu"](both, "auto").rows[1][3]
    assert ratio.value == pytest.approx(40)


def test_cases_without_a_time_are_listed_with_their_reason(laptop, both):
    assert catalogue.tables("dilated")["censored"](laptop, "auto").note == "Every case was timed."
    listed = catalogue.tables("comprehensive")["censored"](both, "auto").rows
    assert [row[2:] for row in listed] == [
        ("128K", "float16", "1", "oom", "oom on purpose"),
        ("8K", "float32", "3", "timeout", "timeout on purpose"),
    ]
    # Cases with one reason stand in one line.
    listed = catalogue.tables("backends")["censored"](both, synthetic.GPU).rows
    assert [row[1:6] for row in listed] == [
        ("Eager softmax", "32K", "float16", "4", "oom"),
        ("SDPA cuDNN", "2K", "float32", "1", "unsupported"),
        ("FlashAttention-2", "2K", "float32", "1", "unsupported"),
    ]


def test_training_is_compared_with_dense_at_the_same_case(laptop):
    rows = catalogue.tables("dilated")["training"](laptop, "auto").rows
    by = {row[0]: row for row in rows}
    assert by["PyTorch baseline"][-1] is None
    assert by["ImprovedDilatedAttention"][-1].value > 1


def test_the_comparison_holds_published_and_measured_and_both_densities(laptop):
    rows = _rows(catalogue.tables("block_sparse")["comparison"](laptop, "auto"))
    assert len(rows) == 16
    first, last = rows[5], rows[15]
    assert (first["Length"], first["Implementation"]) == ("4096", "Block-Sparse (90 %)")
    assert (first["Time published (ms)"], first["Memory published (MiB)"]) == ("40.3", "333.5")
    assert first["Batch"] == "2 / 2"
    assert first["Speed-up published"] == "5.80"
    assert float(first["Speed-up measured"]) == pytest.approx((0.3 + 24 * 16) / (40 + 2.4 * 20))
    assert (first["Density asked"], float(first["Density realised"])) == ("0.1", 6 / 64)
    assert rows[12]["Time published (ms)"] == "OOM"
    assert (last["Time published (ms)"], last["Speed-up published"]) == ("585.4", "")


def test_block_sparse_lengths_have_a_column_per_sparsity(both):
    made = catalogue.tables("block_sparse")["lengths"](both, synthetic.GPU)
    assert made.columns[5:] == (
        "90 % (ms)", "90 % over dense", "95 % (ms)", "95 % over dense", "98 % (ms)",
        "98 % over dense",
    )  # fmt: skip
    rows = {(r[0], r[1], r[2], r[3]): r for r in made.rows}
    own = rows["Block-Sparse", "float16, 8 × 64", "1", "16384"]
    expected = (0.3 + 12 * 256) / (40 + 0.3 * 256)
    assert own[10].value == pytest.approx(expected)
    assert rows["Block-Sparse", "float16, 8 × 64", "1", "1048576"][4] == "out of time"


def test_patterns_are_compared_where_several_were_measured(laptop):
    rows = catalogue.tables("block_sparse")["patterns"](laptop, "auto").rows
    assert [row[1] for row in rows] == [
        "dilated", "global local", "local window", "random", "strided", "top k",
    ]  # fmt: skip
    assert {row[4] for row in rows} == {"8192"}
    assert all(row[7].value > 1 for row in rows)


def test_a_crossover_has_an_interval_or_says_that_there_is_none(both, smoke):
    rows = catalogue.tables("block_sparse")["crossover"](both, "auto").rows
    by = {(row[0], row[1], row[2]): row for row in rows}
    found = by["2-core Maker Model", "float32, 8 × 64", "Block-Sparse (95 %)"]
    expected = 1024 * (39.7 / 11.25) ** 0.5
    assert found[4].low <= found[4].value <= found[4].high
    assert found[4].value == pytest.approx(expected, rel=0.02)
    assert (found[3], found[5]) == ("3,072", "1K–16K")
    few = by["2-core Maker Model", "float32, 8 × 64, training", "Block-Sparse (95 %)"]
    assert few[4:] == ("too few lengths", "–")
    never = crossing(*(scaling.fit([1, 2, 4, 8], [k, 2 * k, 4 * k, 8 * k]) for k in (3.0, 1.0)))
    assert never == ("not in range: faster throughout", "1–8")
    assert crossing(None, None) == ("too few lengths", "–")


def test_backends_stand_by_shape_with_reasons_for_what_has_no_time(both):
    made = catalogue.tables("backends")["worth"](both, synthetic.GPU)
    rows = {row[:3]: row for row in made.rows}
    flash = made.columns.index("SDPA flash")
    assert "Eager softmax" not in made.columns
    known = rows["float16", "1 × 8 × 64", "16K"]
    assert known[flash].value == pytest.approx((0.3 + 36 * 256) / (0.3 + 12 * 256))
    assert rows["float16", "1 × 8 × 64", "32K"][-1] == "out of memory"
    assert rows["float16", "1 × 8 × 64", "32K"][flash] is None
    times = catalogue.tables("backends")["times"](both, synthetic.CPU)
    assert times.rows[-1][:3] == ("float32", "1 × 8 × 128", "4K")
    assert times.note.endswith("Timed nowhere here: SDPA cuDNN, FlashAttention-2.")
    rates = catalogue.tables("backends")["rates"](both, synthetic.CPU)
    assert rates.columns[-1] == "Ceiling" and rates.rows[-1][-1] == "200 GFLOP/s"


@pytest.fixture(scope="module")
def made_of_both(once, both):
    """Experiment -> name -> table of the records of both machines."""

    def make(experiment: str) -> dict:
        return {name: of(both, "auto") for name, of in catalogue.tables(experiment).items()}

    return once("tables-both", lambda: {name: make(name) for name in published.EXPERIMENTS})


def _measured(made: table.Table) -> list[tuple[str, table.Measured]]:
    """(heading, cell) of every cell with a value and an interval."""
    return [
        (column, cell)
        for row in made.rows
        for column, cell in zip(made.columns, row, strict=True)
        if isinstance(cell, table.Measured)
    ]


def _has_its_form(made: table.Table) -> bool:
    lines = len(made.rows) + len(set(made.machines)) + 2
    return (
        all(len(row) == len(made.columns) for row in made.rows)
        and made.to_markdown().count("\n|") == lines
        and made.to_typst().startswith("#figure(kind: table")
    )


@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_every_table_holds_the_values_of_the_records(both, made_of_both, experiment):
    times = both.loc[both["experiment"] == experiment, "median_ms"].to_numpy()
    count = 0
    for name, made in made_of_both[experiment].items():
        assert _has_its_form(made), name
        for column, cell in _measured(made):
            assert not cell.value < cell.low and not cell.value > cell.high, (name, column)
            if column.endswith("(ms)"):
                assert np.isclose(times, cell.value, rtol=1e-9).any(), (name, column, cell)
            count += 1
        rows = list(csv.reader(io.StringIO(made.to_csv())))
        written = {cell for row in rows[1:] for cell in row}
        assert {str(cell.value) for _, cell in _measured(made)} <= written, name
    assert count > 10


@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_every_table_is_made_of_few_records_and_of_none_that_was_timed(smoke, nothing, experiment):
    for name, make in catalogue.tables(experiment).items():
        for frame in (smoke, nothing):
            made = make(frame, "auto")
            assert _has_its_form(made), name
        assert [column for column, _ in _measured(made) if column.endswith("(ms)")] == [], name


def test_unknown_cells_are_dashes_and_typst_reads_no_markup(tmp_path):
    made = table.Table("A *caption*", ("a", "b"), [("#panic()", None), ('"', 0.0)])
    assert "| #panic() | – |" in made.to_markdown()
    assert '"#panic()", "–",' in made.to_typst()
    assert '"\\"", "0",' in made.to_typst()
    table.save(made, tmp_path / "t" / "x-y")
    saved = sorted(p.name for p in (tmp_path / "t").iterdir())
    assert saved == ["x-y.csv", "x-y.md", "x-y.tex", "x-y.typ"]


def test_latex_reads_no_markup():
    made = table.Table(
        r"50 % of \ $x$", ("a_b", "{c} & d"), [("[x] #1", "~^2–3 × ±"), ("<|>`", None)], "n_1"
    )
    lines = made.to_latex("t-x_y").splitlines()
    assert lines[0] == r"% Needs \usepackage{booktabs}."
    assert lines[3] == r"\caption{50 \% of \textbackslash{} \$x\$. n\_1}"
    assert lines[4] == r"\label{tab:t-x_y}"
    assert lines[5:7] == [r"\begin{tabular}{lr}", r"\toprule"]
    assert lines[7] == r"  a\_b & \{c\} \& d \\"
    assert lines[9] == (r"  {[x] \#1} & \textasciitilde{}\textasciicircum{}2--3 $\times$ $\pm$ \\")
    assert lines[10] == r"  \textless{}\textbar{}\textgreater{}\textasciigrave{} & -- \\"


@pytest.mark.parametrize("experiment", published.EXPERIMENTS)
def test_every_table_is_latex_that_closes_what_it_opens(made_of_both, experiment):
    for name, made in made_of_both[experiment].items():
        text = made.to_latex(f"{experiment}-{name}")
        assert text.isascii()
        rows = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
        rows = [row for row in rows if "multicolumn" not in row]
        cells = [re.findall(r"(?<!\\)&", row) for row in rows if row.endswith(r"\\")]
        assert {len(found) for found in cells} == {len(made.columns) - 1}
        assert len(cells) == len(made.rows) + 1
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert text.count(r"\begin") == text.count(r"\end") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_sets_every_table(made_of_both, tmp_path):
    found = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True)
    if found.returncode:
        pytest.skip("needs booktabs")
    made = [made for tables in made_of_both.values() for made in tables.values()]
    made.append(table.Table("".join(escaping._TEX), ("[a]", "*"), [("[x]", None), ("*", 1.5)]))
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    body = "\\clearpage\n".join(one.to_latex(f"t{i}") for i, one in enumerate(made))
    (tmp_path / "t.tex").write_text(f"{head}\n{body}\\end{{document}}\n")
    command = ["pdflatex", "-halt-on-error", "-interaction=batchmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, (tmp_path / "t.log").read_text()[-800:]
