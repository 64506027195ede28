"""Grids: what they expand to, and what a wrong one is told."""

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments import grid as grids
from experiments import procedures
from experiments.plain_yaml import PlainYamlError, loads
from models.registry import VARIANTS

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
        ("a: 1\nb: 0x10", 2),
        ("a: 1\nb: [1_000]", 2),
        ("a: 1\nb: 010", 2),
        ("a: 1\nb: nan", 2),
        ("a: 1\nb: 1e400", 2),
        ("a: 1\nb: 1" + 5000 * "0", 2),
        ("a: 1\nb: 9223372036854775808", 2),
        ("a: 1\nb: {[c]: 1}", 2),
        ("a: 1\nb: {1: 1}", 2),
        ('a: 1\nb: "\\q"', 2),
    ],
)
def test_plain_yaml_names_the_line_it_cannot_read(text, line):
    with pytest.raises(PlainYamlError, match=f"line {line}"):
        loads(text)


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
    cases = grids.load("block_sparse").tiers["gpu"].cases
    published = {
        (c.variant, c.batch, c.seq_len, c.sparsity)
        for c in cases
        if c.dtype == "float16" and not c.is_causal and c.pass_ == "forward" and c.heads == 8
    }
    for shape in ((4, 2048), (2, 4096), (1, 8192), (1, 16384)):
        assert ("dense", *shape, None) in published
        assert {("block-sparse", *shape, s) for s in (0.9, 0.95, 0.98)} <= published


def test_the_goals_of_block_sparse_attention_come_first():
    first = grids.load("block_sparse").tiers["gpu"].cases[:28]
    assert {(c.seq_len, c.pass_, c.sparsity) for c in first if c.variant == "block-sparse"} == {
        (n, passes, sparsity)
        for n in (16384, 65536)
        for passes in ("forward", "forward_backward")
        for sparsity in (0.9, 0.95, 0.98)
    }
    assert sum(c.variant == "dense" for c in first) == 4


def test_every_dense_backend_is_measured_in_both_big_tiers():
    backends = {v for v in VARIANTS if v.startswith("dense-")}
    assert len(backends) == 8
    for tier in ("laptop", "gpu"):
        assert {c.variant for c in grids.load("backends").tiers[tier].cases} == backends


GOOD = """
title: t
question: q
procedure: attention
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
        ("attention", "atention", "procedure 'atention': expected one of attention, ranks, stream"),
        ("attention", "ranks", "procedure ranks cannot measure dense: expected attention"),
        ("attention", "[ranks, streamed]", "procedure ranks or streamed cannot measure dense"),
        ("dense,", "ring-standard,", "procedure attention cannot measure ring-standard: expected"),
    ],
)
def test_a_procedure_that_cannot_measure_a_variant_is_told(tmp_path, old, new, told):
    text = GOOD.replace("is_causal: false", "is_causal: false\n        world_size: 1")
    text = text.replace("world_size: 1", "world_size: 1\n        simulated: true").replace(old, new)
    with pytest.raises(grids.GridError, match=told):
        write(tmp_path, text)


def test_each_variant_of_a_grid_has_its_procedure():
    found = {v: grids.load("ring").procedure(v) for v in ("dense", "ring-hilbert")}
    assert found == {"dense": "attention", "ring-hilbert": "ranks"}
    assert grids.load("extreme").procedure("dilated-streamed-host") == "streamed"
    assert grids.load("as_published").procedure("published-over-heads") == "replica"


def test_without_a_procedure_each_variant_takes_the_only_one_that_can(tmp_path):
    ranks = "is_causal: false\n        world_size: 1\n        simulated: true"
    text = GOOD.replace("procedure: attention\n", "").replace("is_causal: false", ranks)
    grid = write(tmp_path, text.replace("[dense,", "[ring-standard, dense,"))
    assert [grid.procedure(v) for v in ("ring-standard", "dense")] == ["ranks", "attention"]


def test_two_procedures_for_one_variant_are_no_choice(monkeypatch):
    other = replace(procedures.PROCEDURES["attention"], name="other")
    monkeypatch.setitem(procedures.PROCEDURES, "other", other)
    with pytest.raises(ValueError, match="attention and other can both measure dense: name one"):
        procedures.choose("dense", ["attention", "other"])
    assert procedures.choose("dense", ["other"]) == "other"


BLOCKS = """
        pattern: [random, dilated]
        sparsity: [0.5, 0.9]
        block_size: 4
"""


def test_a_block_of_all_kinds_gives_each_variant_what_it_takes(tmp_path):
    text = GOOD.replace("dense, dilated-sdpa]", "dense, dilated-sdpa, block-sparse]")
    cases = write(tmp_path, text.replace("heads: [2, 4]", "heads: 2" + BLOCKS.rstrip()))
    cases = cases.tiers["smoke"].cases
    told = [(c.variant, c.segment_lengths, c.pattern, c.sparsity, c.block_size) for c in cases]
    assert told == [
        ("dense", None, None, None, None),
        ("dilated-sdpa", (4,), None, None, None),
        ("block-sparse", None, "random", 0.5, 4),
        ("block-sparse", None, "random", 0.9, 4),
        ("block-sparse", None, "dilated", 0.5, 4),
        ("block-sparse", None, "dilated", 0.9, 4),
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("pattern: [random, dilated]", "pattern: dilatd", "pattern='dilatd': expected one of loca"),
        ("sparsity: [0.5, 0.9]", "sparsity: 1.0", "sparsity=1.0: expected a number from 0.0"),
        ("sparsity: [0.5, 0.9]", "sparsity: 90", "sparsity=90: expected a number from 0.0"),
        ("block_size: 4", "block_size: 4.5", "block_size=4.5: expected an integer >= 1"),
        ("block_size: 4", "", "block-sparse needs pattern, sparsity and block_size"),
    ],
)
def test_a_wrong_block_mask_is_told(tmp_path, old, new, told):
    text = GOOD.replace("dense, dilated-sdpa]", "dense, dilated-sdpa, block-sparse]")
    assert old in BLOCKS
    with pytest.raises(grids.GridError) as error:
        write(
            tmp_path, text.replace("heads: [2, 4]", "heads: 2" + BLOCKS.replace(old, new).rstrip())
        )
    assert told in str(error.value) and "mine.yaml: smoke: cases, block 1" in str(error.value)


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
        ("heads: [2, 4]", "heads: [2, 4", "mine.yaml: line 9"),
        ("heads: [2, 4]\n        ", "", "missing key 'heads'"),
        ("pass: forward", "pass: backward", "pass='backward'"),
        ("heads: [2, 4]", "heads: []", "heads: an empty list leaves no case"),
        ("dense, dilated-sdpa", "[dense]", "variant ['dense']"),
        ("heads: [2, 4]", "heads: [[2]]", "heads=(2,): expected an integer"),
        ("heads: [2, 4]", "heads: {a: 1}", "heads={'a': 1}: expected an integer"),
        ("heads: [2, 4]", "heads: true", "heads=True: expected an integer"),
        ("dtype: float32", "dtype: [[float32]]", "dtype=('float32',): expected one of"),
        ("title: t", "title: [t]", "title: expected text, got ['t']"),
        ("procedure: attention", "procedure: {attention: 1}", "procedure {'attention': 1}: expect"),
        ("heads: [2, 4]", f"heads: {[*range(1, 10_002)]}", "expected at most 10000 of a block"),
        ("segment_lengths: [4]", f"segment_lengths: {90 * [100]}", "expected as many as"),
        (
            "segment_lengths: [4], dilation_rates: [2]",
            f"segment_lengths: {90 * [100]}, dilation_rates: {90 * [2]}",
            "a longer name than a file can have",
        ),
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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"title: t\nquestion: \xfc\n", "mine.yaml: line 2: not UTF-8"),
        (b"", "mine.yaml: expected a mapping, got None"),
        (b"a: " + 10**5 * b"[", "mine.yaml: nested too deeply"),
        (None, "mine.yaml: Is a directory"),
    ],
)
def test_what_is_no_grid_is_told(tmp_path, content, told):
    path = tmp_path / "mine.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(grids.GridError, match=re.escape(told)):
        grids.load("mine", tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_grid(tmp_path):
    (tmp_path / "mine.yaml").write_text(textwrap.dedent(GOOD), encoding="utf-8-sig")
    assert grids.load("mine", tmp_path).title == "t"


@pytest.mark.parametrize("name", ["my grid", "it's", "{x}", "new\nline", "$(x)", "Mine", ".mine"])
def test_a_name_that_commands_would_have_to_quote_is_told(tmp_path, monkeypatch, name):
    (tmp_path / f"{name}.yaml").touch()
    monkeypatch.setattr(grids, "GRIDS", tmp_path)
    with pytest.raises(grids.GridError, match="expected a name of a-z, 0-9 and _") as error:
        grids.names()
    assert repr(f"{name}.yaml")[1:-1] in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_experiment_is_told_which_there_are():
    with pytest.raises(grids.GridError, match="experiment 'dilate'.*backends, block_sparse, comp"):
        grids.load("dilate")


FIRST = """
title: t
question: q
tiers:
  smoke:
    limits: {min_samples: 5, sample_seconds: 0.1, memory_gib: 2}
    cases:
      - variant: [dense, dilated-sdpa]
        heads: 2
        head_dim: 8
        dtype: float32
        is_causal: false
        pass: forward
        batch: 1
        segment_lengths: [4]
        dilation_rates: [2]
        shapes: [{seq_len: 8}, {seq_len: 16}]
  laptop: {cases: []}
  gpu: {cases: []}
"""


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Three experiments: `a`, `b` without the long shape, `c` with neither but one of its own."""
    limits = "{min_samples: 5, sample_seconds: 0.1, memory_gib: 2}"
    others = {
        "a": FIRST,
        "b": FIRST.replace(", {seq_len: 16}", "").replace(limits, "{min_samples: 4, timeout_s: 9}"),
        "c": FIRST.replace("{seq_len: 8}, {seq_len: 16}", "{seq_len: 32}"),
    }
    for name, text in others.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(grids, "GRIDS", tmp_path)
    load = grids.load
    monkeypatch.setattr(grids, "load", lambda name: load(name, tmp_path))
    grids._experiments_of.cache_clear()
    yield tmp_path
    grids._experiments_of.cache_clear()


def told(tasks):
    return [(t.case.variant, t.case.seq_len, "".join(t.experiments)) for t in tasks]


def test_a_case_of_several_experiments_is_one_task_by_turns(three):
    assert told(grids.tasks("smoke")) == [
        ("dense", 8, "ab"),
        ("dense", 32, "c"),
        ("dilated-sdpa", 8, "ab"),
        ("dilated-sdpa", 32, "c"),
        ("dense", 16, "a"),
        ("dilated-sdpa", 16, "a"),
    ]
    assert grids.tasks("gpu") == []


def test_a_task_has_the_largest_limits_whoever_asks(three):
    both = grids.Limits(min_samples=5, sample_seconds=0.3, timeout_s=120.0, memory_gib=None)
    alone = grids.Limits(min_samples=5, sample_seconds=0.1, memory_gib=2)
    assert [t.limits for t in grids.tasks("smoke")] == [both, alone] * 2 + [alone] * 2
    for name in "abc":
        asked = grids.tasks("smoke", [name])
        assert [t.case for t in asked] == list(grids.load(name).tiers["smoke"].cases)
        assert set(asked) <= set(grids.tasks("smoke"))


def test_experiments_of_a_case_are_those_that_have_it_in_any_tier(three, case):
    short, long = (t.case for t in grids.tasks("smoke") if t.name.startswith("dense_b1_n") and
                   t.case.seq_len < 32)  # fmt: skip
    assert grids.experiments_of(short) == ("a", "b") and grids.experiments_of(long) == ("a",)
    assert grids.experiments_of(case()) == ()


def test_two_procedures_of_one_case_are_told(three, monkeypatch):
    other = replace(procedures.PROCEDURES["attention"], name="training")
    monkeypatch.setitem(procedures.PROCEDURES, "training", other)
    for name, procedure in {"a": "attention", "b": "training", "c": "attention"}.items():
        path = three / f"{name}.yaml"
        path.write_text(path.read_text().replace("title", f"procedure: {procedure}\ntitle"))
    with pytest.raises(grids.GridError, match="measured in a by attention and b by training: expe"):
        grids.tasks("smoke")


@pytest.mark.parametrize("tier", grids.TIERS)
def test_every_case_of_a_tier_is_a_task_once(tier):
    tasks = grids.tasks(tier)
    cases = [case for name in grids.names() for case in grids.load(name).tiers[tier].cases]
    assert len(tasks) == len({t.name for t in tasks}) == len(set(cases)) < len(cases)
    assert sum(len(t.experiments) for t in tasks) == len(cases)
    assert all(t.limits.replicates == 1 for t in tasks)
    for t in tasks:
        assert set(t.experiments) <= set(grids.experiments_of(t.case))
