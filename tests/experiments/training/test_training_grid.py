"""Grids of trainings, their recipes, and which code their numbers depend on."""

import shutil

import pytest

from experiments import digest, grid, runner
from experiments.case import Case
from experiments.training import recipes
from experiments.training.case import TrainingCase
from experiments.training.recipes import RECIPES, run_config
from tests.experiments.training.cases import training_case

TEXT = """
title: t
question: q
procedure: training
tiers:
  smoke:
    cases:
      - variant: [dense, dilated-sdpa, head-partitioned, block-sparse-sdpa]
        batch: 2
        heads: 4
        head_dim: 8
        dtype: float32
        is_causal: true
        pass: forward_backward
        head_offset: [modulo, block]
        segment_lengths: [8, 32]
        dilation_rates: [1, 4]
        pattern: [local_window, top_k]
        sparsity: 0.5
        block_size: 4
        shapes:
          - {recipe: recall-smoke, seq_len: 32}
          - {recipe: text-smoke, seq_len: 64}
  laptop: {cases: []}
  gpu: {cases: []}
"""


@pytest.fixture
def load(tmp_path):
    """The grid of a text in which some words are others."""

    def load(*changes):
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "mine.yaml").write_text(text)
        return grid.load("mine", tmp_path)

    return load


def test_each_variant_takes_what_applies_to_it(load):
    cases = load().tiers["smoke"].cases
    assert {type(case) for case in cases} == {TrainingCase}
    short = [
        (case.variant, case.head_offset, case.pattern)
        for case in cases
        if (case.recipe, case.seq_len) == ("recall-smoke", 32)
    ]
    assert sorted(short, key=str) == [
        ("block-sparse-sdpa", "modulo", "local_window"),
        ("block-sparse-sdpa", "modulo", "top_k"),
        ("dense", "modulo", None),
        ("dilated-sdpa", "block", None),
        ("dilated-sdpa", "modulo", None),
        ("head-partitioned", "modulo", None),
    ]
    assert len(cases) == 2 * len(short)
    assert {(case.recipe, case.seq_len) for case in cases} == {
        ("recall-smoke", 32),
        ("text-smoke", 64),
    }
    assert {case.kv_heads for case in cases} == {4}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "recipe: recall-smoke",
            "recipe: none-such",
            "recipe='none-such': expected one of recall-smoke",
        ),
        ("recipe: recall-smoke, ", "", "recipe='': expected one of recall-smoke, text-smoke"),
        ("recipe: recall-smoke", "recipe: {a: 1}", "recipe={'a': 1}: expected one of"),
        ("[modulo, block]", "[modulo, paper]", "head_offset='paper': expected one of modulo, bloc"),
        ("is_causal: true", "is_causal: false", "is_causal=False: expected true, of a training"),
        ("float32", "float16", "dtype='float16': expected float32 or bfloat16"),
        # A grid of attention has neither key.
        ("procedure: training\n", "", "unknown key 'recipe': expected one of variant, batch"),
        ("procedure: training", "procedure: attention", "unknown key 'recipe': expected one of"),
        (
            "procedure: training",
            "procedure: [attention, training]",
            "procedures attention and training can both measure dense: name one",
        ),
        ("[dense,", "[ring-standard, dense,", "ring-standard needs world_size and simulated"),
        ("[dense,", "[multihead-dilated-sdpa, dense,", "training cannot measure multihead-dil"),
    ],
)
def test_a_wrong_grid_is_told_with_its_place(load, old, new, told):
    with pytest.raises(grid.GridError) as caught:
        load((old, new))
    assert told in str(caught.value)
    assert "mine.yaml: smoke: cases, block 1: " in str(caught.value)


def test_a_head_offset_is_no_key_of_attention(load):
    changes = [(f"recipe: {name}, ", "") for name in ("recall-smoke", "text-smoke")]
    changes.append(("procedure: training\n", ""))
    with pytest.raises(grid.GridError, match="block 1: unknown key 'head_offset'"):
        load(*changes)
    cases = load(*changes, ("        head_offset: [modulo, block]\n", "")).tiers["smoke"].cases
    assert {type(case) for case in cases} == {Case}


def test_quick_cases_are_named_by_recipe(load):
    quick = "quick: {recipe: text-smoke, head_offset: block}\n        batch: 2"
    tier = load(("batch: 2", quick)).tiers["smoke"]
    # A field that applies to all counts for all.
    assert {(case.variant, case.recipe) for case in tier.quick} == {("dilated-sdpa", "text-smoke")}
    with pytest.raises(grid.GridError, match="quick: no case with recipe=none-such"):
        load(("batch: 2", "quick: {recipe: none-such}\n        batch: 2"))


def test_filters_know_recipes():
    tasks = grid.tasks("smoke")
    only = runner.parse_only(["recipe=recall-smoke"])
    found = runner.select(tasks, only)
    assert found and {task.case.recipe for task in found} == {"recall-smoke"}
    assert {task.procedure for task in found} == {"training"}
    assert all(task.experiments == ("quality",) for task in found)
    with pytest.raises(ValueError, match="expected k=v with k one of variant.*, recipe, head_offs"):
        runner.parse_only(["recipes=recall-smoke"])


RECIPE = """
mine:
  layers: 2
  source: associative_recall
  options: {vocab_size: 32, pairs: 2}
  seeds: 3
  training:
    steps: 4
    optimiser: {learning_rate: 0.003}
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The recipes of a text."""

    def read(text):
        monkeypatch.setattr(recipes, "PATH", tmp_path / "recipes.yaml")
        recipes.PATH.write_text(text)
        return recipes._read()

    return read


def test_a_recipe_is_read(read):
    found = read(RECIPE)["mine"]
    assert (found.name, found.layers, found.seeds, found.vocab_size) == ("mine", 2, 3, 32)
    assert found.training.optimiser.learning_rate == 0.003
    text = read(RECIPE.replace("associative_recall", "text").replace("vocab_size: 32, ", ""))
    assert text["mine"].vocab_size == 256


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("layers: 2", "layer: 2", "recipes.yaml: mine: layer: no such field; there are name"),
        ("layers: 2", "layers: 0", "recipes.yaml: mine: layers=0: expected"),
        ("seeds: 3", "seeds: 1.5", "recipes.yaml: mine: seeds=1.5: expected"),
        ("  source: associative_recall\n", "", "recipes.yaml: mine: source: missing"),
        ("steps: 4", "stepz: 4", "recipes.yaml: mine: training.stepz: no such field"),
        ("steps: 4", "steps: -4", "recipes.yaml: mine: steps=-4: expected"),
        ("learning_rate: 0.003", "learning_rate: fast", "recipes.yaml: mine: optimiser.learning_r"),
        ("mine:", "my_own:", "recipes.yaml: my_own: name='my_own': expected a-z, 0-9 and -"),
    ],
)
def test_a_wrong_recipe_is_told(read, old, new, told):
    assert old in RECIPE
    with pytest.raises(ValueError) as caught:
        read(RECIPE.replace(old, new))
    assert str(caught.value).startswith(told)


def test_the_configuration_of_a_case_is_its_recipe_with_its_attention():
    case = training_case(head_offset="block", heads=4, kv_heads=2, dtype="bfloat16", batch=3)
    recipe, config = RECIPES[case.recipe], run_config(case, 7)
    assert config.model == {
        "attention": "dilated-sdpa",
        "layers": recipe.layers,
        "embed_dim": 32,
        "heads": 4,
        "kv_heads": 2,
        "ffn_dim": 32 * recipe.ffn_ratio,
        "segment_lengths": [8, 32],
        "dilation_rates": [1, 4],
        "head_offset": "block",
    }
    data = config.data
    assert (data.source, data.seq_len, data.batch, data.seed) == (recipe.source, 32, 3, 7)
    assert data.options == recipe.options
    assert (config.training.seed, config.training.precision) == (7, "bfloat16")
    assert config.training.steps == recipe.training.steps
    blocks = run_config(training_case(variant="block-sparse-sdpa"), 0).model
    assert {key: blocks[key] for key in ("pattern", "sparsity", "block_size")} == {
        "pattern": "local_window",
        "sparsity": 0.5,
        "block_size": 4,
    }
    assert not {"segment_lengths", "head_offset"} & {*blocks}
    assert not {"segment_lengths", "pattern"} & {
        *run_config(training_case(variant="dense"), 0).model
    }


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the code that digests are taken of."""
    for folder in ("models", "experiments"):
        shutil.copytree(digest.ROOT / folder, tmp_path / folder)
    monkeypatch.setattr(digest, "ROOT", tmp_path)
    return tmp_path


def test_a_digest_of_trainings_follows_recipes_and_the_loop_and_not_the_runner(copied):
    keys = [(name, "training") for name in ("dense", "dilated-sdpa", "block-sparse-sdpa")]
    keys += [("dense", "attention"), ("dense", None)]

    def digests():
        return {key: digest.code_digest(*key) for key in keys}

    def changed(path, old="", new=""):
        before, file = digests(), copied / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1) if old else f"{text}\nADDED = 1\n")
        after = digests()
        return {key for key in keys if after[key] != before[key]}

    first = digests()
    assert first["dense", "attention"] == first["dense", None]
    assert len(set(first.values())) == len(keys) - 1
    of_trainings = {key for key in keys if key[1] == "training"}
    recipes_file = "experiments/training/recipes.yaml"
    assert changed(recipes_file, "\n", "\n# In other words.\n") == set()
    assert changed(recipes_file, "seeds: ", "seeds: 1") == of_trainings
    for path in ("training/loop", "training/layer_attention", "procedures/training", "check"):
        found = changed(f"experiments/{path}.py")
        assert found == (set(keys) if path == "check" else of_trainings)
    for path in ("runner", "supervise", "training/run", "cost/training", "plausible_trainings"):
        assert changed(f"experiments/{path}.py") == set()
    assert changed("models/longnet.py") == of_trainings
    assert changed("models/dilated.py") == {("dilated-sdpa", "training")}
    names = {path.relative_to(copied).as_posix() for path in digest.sources(*keys[0])}
    assert {recipes_file, "experiments/training/recipes.py", "models/oracle.py"} <= names
