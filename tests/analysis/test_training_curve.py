"""The loss of a training as a figure: what it shows is what the lines say."""

import csv
import json

import pytest

from analysis import training_curve

LINES = [
    {"step": 1, "loss": 4.0},
    {"step": 2, "loss": 3.5, "evaluation": {"loss": 3.75}},
    {"step": 3, "loss": 3.0},
    {"step": 4, "loss": 2.5, "evaluation": {"loss": 2.875}},
]


def test_the_figure_shows_each_batch_and_the_evaluations(tmp_path, capsys):
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    assert training_curve.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/loss.svg\n"
    rows = list(csv.DictReader((tmp_path / "loss.csv").read_text().splitlines()))
    found = {
        name: [
            (float(row["step"]), float(row["loss (bits per token)"]))
            for row in rows
            if row["series"] == name
        ]
        for name in {row["series"] for row in rows}
    }
    assert found == {
        "training, each batch": [(1, 4.0), (2, 3.5), (3, 3.0), (4, 2.5)],
        "validation": [(2, 3.75), (4, 2.875)],
    }
    assert (tmp_path / "loss.svg").stat().st_size > 1000 and (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("text", [None, "", "nonsense\n"])
def test_a_folder_without_a_step_is_told_in_a_line(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert training_curve.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("training_curve: ") and said.count("\n") == 1
    assert not (tmp_path / "loss.svg").exists()
