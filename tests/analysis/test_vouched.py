"""What nobody vouches for is shown and marked, and neither judges nor speaks."""

import shutil

import pytest

from analysis import catalogue
from analysis.across import provenance
from analysis.claims.__main__ import main as claims_command
from analysis.findings.__main__ import main as findings_command
from analysis.pages import results_page
from analysis.records import files
from analysis.records import frame as records
from analysis.selection import views
from experiments import trusted
from tests.analysis import synthetic, synthetic_cards

H100 = synthetic_cards.H100
MARKED = f"{H100.id} (not vouched for)"


@pytest.fixture(scope="module")
def beside(laptop_root, tmp_path_factory):
    """The laptop's records, and beside them those of a card that a stranger has put there."""
    root = shutil.copytree(laptop_root, tmp_path_factory.mktemp("stranger") / "published")
    before = (root / trusted.NAME).read_text()
    synthetic_cards.write(root, synthetic_cards.half_full(), H100, 2)
    (root / trusted.NAME).write_text(before)
    return root


@pytest.fixture(scope="module")
def frame(beside):
    return records.load(beside)


def test_a_stranger_is_shown_last_and_marked(frame, beside):
    assert set(frame["machine"]) == {synthetic.CPU, MARKED}
    own = frame[frame["machine"] == MARKED]
    assert not own["vouched"].any() and set(own["machine_name"]) == {
        "NVIDIA H100 80GB HBM3 (not vouched for)"
    }
    first = records.reporting_machine(frame)
    assert (first, records.machines(frame, first)) == (synthetic.CPU, [synthetic.CPU, MARKED])
    assert list(results_page.data(frame)["machines"]) == [synthetic.CPU, MARKED]
    made = catalogue.tables("dilated")["machines"](frame, "auto")
    assert [row[0] for row in made.rows] == [synthetic.CPU, MARKED]
    every = provenance.table_of(files.read(beside))
    assert set(every[~every["vouched"].astype(bool)]["machine"]) == {MARKED}


def test_a_stranger_gives_no_number(frame, laptop):
    for experiment in ("dilated", "comprehensive"):
        assert views.view(frame, experiment).machine == synthetic.CPU
        with_it = catalogue.numbers(frame, experiment)
        without = catalogue.numbers(laptop, experiment)
        assert {k: (v["value"], v["text"]) for k, v in with_it.items()} == {
            k: (v["value"], v["text"]) for k, v in without.items()
        }


def test_a_stranger_judges_nothing_until_somebody_vouches(beside, laptop_root, tmp_path, capsys):
    def judged(root):
        out = tmp_path / "claims.json"
        claims_command(["--out", str(out), str(root)])
        findings_command(["--out", str(tmp_path / "found"), str(root)])
        capsys.readouterr()
        verdicts = (tmp_path / "claims.csv").read_text()
        return verdicts.replace(str(root), ""), (tmp_path / "numbers/findings.json").read_text()

    alone, with_it = judged(laptop_root), judged(beside)
    assert alone[0] == with_it[0]
    assert alone[1].replace(str(laptop_root), "") == with_it[1].replace(str(beside), "")
    vouched = shutil.copytree(beside, tmp_path / "known" / "published")
    trusted.add(vouched, [path.parts[-2:] for path in vouched.glob(f"{H100.id}/*/")], "me")
    assert judged(vouched)[0] != alone[0]
    assert records.reporting_machine(records.load(vouched)) == H100.id


def test_what_was_changed_since_is_a_strangers(laptop_root, tmp_path):
    root = shutil.copytree(laptop_root, tmp_path / "published")
    path = next(iter(sorted(root.glob(f"*/{synthetic.round_name(1)}/dense_*.json"))))
    path.write_text(path.read_text() + "\n")
    found = {one.round: one.is_vouched for one in files.read(root)}
    assert found == {synthetic.round_name(n): n != 1 for n in range(1, synthetic.ROUNDS + 1)}
    frame = records.load(root)
    assert set(frame["machine"]) == {synthetic.CPU, f"{synthetic.CPU} (not vouched for)"}
    assert set(records.vouched(frame)["rounds"]) == {synthetic.ROUNDS - 1}


def test_where_nobody_vouches_nothing_is_judged(laptop_root, tmp_path, capsys):
    root = shutil.copytree(laptop_root, tmp_path / "published")
    (root / trusted.NAME).unlink()
    assert claims_command(["--out", str(tmp_path / "claims.json"), str(root)]) == 1
    told = "no record that somebody vouches for (results/published/TRUSTED)"
    assert told in capsys.readouterr().err
    with pytest.raises(records.RecordsError, match="vouches"):
        records.reporting_machine(records.load(root))
