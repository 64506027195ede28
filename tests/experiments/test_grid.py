"""Grids: what they expand to, and what a wrong one is told."""

import textwrap
from pathlib import Path

import pandas as pd
import pytest
import yaml
from snakemake.utils import Paramspace

from experiments import grid as grids
from experiments.case import Case, CaseError
from experiments.plain_yaml import PlainYamlError, loads

GRIDS = sorted(Path(grids.GRIDS).glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_plain_yaml_reads_every_grid_as_pyyaml_does(path):
    assert loads(path.read_text()) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: -2.5\nc: text with spaces # comment\nd: 'quoted # no comment'",
        'a: "colon: inside"\nb: [1, 2.0, true, null, x-y, "q, r"]',
        "a:\n  - b: 1\n    c: [x]\n  - b: 2\nd:\n- 1\n- {e: f, g: [h]}",
        "a: {}\nb: []\nc:\nd: ~",
        "# only\n\na:\n    b:\n        c: 1\n    d: 2",
    ],
)
def test_plain_yaml_agrees_with_pyyaml(text):
    assert loads(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1, 2", 1),
        ("a: 1\n b: 2", 2),
        ("a: 1\nnonsense", 2),
        ("a: 1\n\ta: 2", 2),
        ("a: 1\na: 2", 2),
    ],
)
def test_plain_yaml_names_the_line_it_cannot_read(text, line):
    with pytest.raises(PlainYamlError, match=f"line {line}"):
        loads(text)


@pytest.mark.parametrize("name", grids.names())
def test_file_names_are_those_of_paramspace(name):
    grid = grids.load(name)
    for tier in grid.tiers.values():
        frame = pd.DataFrame([grid.params(case) for case in tier.cases])
        space = Paramspace(frame, filename_params="*", param_sep="-", filename_sep="_")
        ours = [grid.file_name(case) for case in tier.cases]
        assert ours == list(space.instance_patterns)
        assert len(set(ours)) == len(ours)
        assert max(map(len, ours)) < 250


def test_published_shapes_are_all_in_the_gpu_tier():
    cases = grids.load("comprehensive").tiers["gpu"].cases
    published = {
        (c.batch, c.seq_len)
        for c in cases
        if c.dtype == "float32" and not c.is_causal and c.pass_ == "forward" and c.heads == 8
    }
    assert {(b, n) for b in (1, 2, 4) for n in (2048, 4096, 8192)} <= published
    cases = grids.load("dilated").tiers["gpu"].cases
    published = {(c.batch, c.seq_len) for c in cases if c.dtype == "float16" and c.heads == 12}
    assert {(1, 2048), (2, 4096), (4, 8192), (4, 16384), (4, 32768)} <= published


GOOD = """
title: t
question: q
tiers:
  smoke:
    cases:
      - variant: [dense, dilated-sdpa]
        heads: [2, 4]
        head_dim: 8
        dtype: float32
        is_causal: false
        pass: forward
        shapes:
          - {batch: 1, seq_len: 8, segment_lengths: [4], dilation_rates: [2]}
  laptop: {cases: []}
  gpu: {cases: []}
"""


def write(folder, text):
    (folder / "mine.yaml").write_text(textwrap.dedent(text))
    return grids.load("mine", folder)


def test_a_block_is_a_full_grid_and_dense_has_no_branches(tmp_path):
    cases = write(tmp_path, GOOD).tiers["smoke"].cases
    assert [(c.heads, c.variant) for c in cases] == [
        (2, "dense"),
        (2, "dilated-sdpa"),
        (4, "dense"),
        (4, "dilated-sdpa"),
    ]
    assert cases[0].segment_lengths is None and cases[1].segment_lengths == (4,)
    assert cases[0].kv_heads == 2 and cases[2].kv_heads == 4


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "head_dim: 8",
            "head_dims: 8",
            "mine.yaml: smoke: cases, block 1: unknown key 'head_dims'",
        ),
        ("dilated-sdpa]", "dilatd]", "mine.yaml: smoke: cases, block 1: variant 'dilatd'"),
        ("seq_len: 8", "seq_len: -8", "seq_len=-8: expected an integer >= 1"),
        ("seq_len: 8", "seq_len: big", "seq_len='big'"),
        (
            "rates: [2]",
            "rates: [2, 3]",
            "dilation_rates=[2, 3]: expected as many as segment_lengths=[4]",
        ),
        ("dtype: float32", "dtype: float31", "dtype='float31'"),
        ("title: t", "titel: t", "mine.yaml: unknown key 'titel'"),
        ("  gpu: {cases: []}", "", "mine.yaml: tiers: missing key 'gpu'"),
        ("laptop: {cases: []}", "laptop: {cases: [], limits: {tries: 3}}", "unknown key 'tries'"),
        ("heads: [2, 4]", "heads: [2, 4", "mine.yaml: line 8"),
        ("heads: [2, 4]\n        ", "", "missing key 'heads'"),
        ("pass: forward", "pass: backward", "pass='backward'"),
        ("heads: [2, 4]", "heads: []", "heads: an empty list leaves no case"),
        ("dense, dilated-sdpa", "[dense]", "variant ['dense']"),
        ("batch: 1", "batch: 1, batch: 2", "key 'batch' stands twice"),
        (
            "laptop: {cases: []}",
            "laptop: {cases: [], limits: {replicates: 1.5}}",
            "replicates=1.5: expected an integer >= 1",
        ),
    ],
)
def test_a_wrong_grid_is_told_file_place_and_key(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(grids.GridError) as error:
        write(tmp_path, GOOD.replace(old, new))
    assert told in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_an_unknown_experiment_is_told_which_there_are():
    with pytest.raises(grids.GridError, match="experiment 'dilate'.*comprehensive, dilated"):
        grids.load("dilate")


def test_a_case_survives_the_way_through_a_record(case):
    built = case(seed=3)
    assert Case.from_mapping({"variant": built.variant, **built.to_json()}) == built


def test_kv_heads_must_divide_heads(case):
    with pytest.raises(CaseError, match="kv_heads=3: expected a divisor of heads=4"):
        case(kv_heads=3)
