"""What the workflow reads off the notebooks: their outputs, and the captions of the report."""

import docutils.core
import pytest

from analysis import outputs
from experiments import grid


@pytest.mark.parametrize("experiment", grid.names())
def test_every_output_has_a_caption_that_docutils_reads(experiment):
    captions = outputs.captions(experiment)
    assert {outputs.caption_path(path) for path in outputs.written(experiment)} == set(captions)
    for path, text in captions.items():
        settings = {"halt_level": 2, "report_level": 2}  # warnings are errors
        docutils.core.publish_parts(text, writer="html", settings_overrides=settings)
        assert "{{" not in text and "{%" not in text  # Snakemake fills captions in by jinja
        assert len(text.split("\n\n")) >= 3, f"{path}: no text before it in the notebook"


def test_a_caption_is_the_text_before_it_in_the_notebook():
    text = outputs.captions("dilated")["captions/figures/dilated-memory.rst"]
    assert text.startswith("**Memory against length**\n\nTrue peak of a separate, untimed pass")
    assert text.endswith("``python -m analysis.notebook dilated``.\n")
    assert "``dilated``" in outputs.captions("dilated")["captions/tables/dilated-machines.rst"]


def test_outputs_stand_in_the_report_by_kind_and_experiment():
    assert outputs.place("tables/block_sparse-patterns.csv", "block_sparse") == {
        "category": "Tables",
        "subcategory": "Block-sparse",
        "labels": {"table": "patterns", "form": "csv"},
    }
    assert outputs.place("figures/dilated-time.svg", "dilated")["labels"] == {
        "figure": "time",
        "form": "svg",
    }
    assert outputs.place("numbers/ring.json", "ring")["labels"] == {"of": "ring"}


def test_captions_are_written_under_the_build_folder(tmp_path):
    assert outputs.main(["ring", "--build", str(tmp_path)]) == 0
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.rst")}
    assert written == set(outputs.captions("ring"))
