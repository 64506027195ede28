"""Configurations are read strictly: one line that names the field, before any work."""

from pathlib import Path

import pytest
import yaml

from experiments import plain_yaml
from experiments.training import config, model, run, sources
from models.registry import VARIANTS
from tests.experiments.training.tiny import values

EXAMPLES = sorted(Path(config.__file__).parent.glob("examples/*.yaml"))


def test_fields_and_their_defaults():
    made = config.from_values(values(training_optimiser={"learning_rate": 1, "betas": [0, 0.5]}))
    assert made.training.optimiser == config.OptimiserConfig(
        learning_rate=1.0,
        final_fraction=0.1,
        warm_up_steps=0,
        betas=(0.0, 0.5),
        weight_decay=0.1,
        clip=1.0,
    )
    assert (made.training.steps, made.training.seed, made.data.seed) == (20, 0, 0)
    assert made.parallel.context == 1 and made.output.checkpoint_every == 4
    assert made.to_json()["training"]["optimiser"]["betas"] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training": None}, "training: missing"),
        ({"optimizer": {}}, "optimizer: no such field; there are model, data, training, par"),
        ({"model": [1]}, "model=[1]: expected a mapping of the fields of LongNetConfig"),
        ({"model_vocab_size": 9}, "model.vocab_size=9: expected none; it is the source's"),
        ({"data": 3}, "data=3: expected a mapping of source, seq_len, batch, seed, options"),
        ({"data_rows": 3}, "data.rows: no such field; there are source, seq_len, batch"),
        ({"data_batch": 0}, "data.batch=0: expected an integer >= 1"),
        ({"data_seq_len": 1}, "data.seq_len=1: expected an integer >= 2"),
        ({"data_source": 4}, "data.source=4: expected the name of a source"),
        ({"training_steps": 0}, "training.steps=0: expected an integer >= 1"),
        ({"training_steps": 2.5}, "training.steps=2.5: expected an integer >= 1"),
        ({"training_seed": -1}, "training.seed=-1: expected an integer >= 0"),
        ({"training_compile": "no"}, "training.compile='no': expected true or false"),
        ({"training_micro_batch": 0}, "training.micro_batch=0: expected an integer >= 1"),
        ({"training_precision": "fp8"}, "training.precision='fp8': expected one of float32, bf"),
        ({"training_precision": "float16"}, "training.precision='float16': expected float32 or"),
        ({"training_optimiser": {}}, "training.optimiser.learning_rate: missing"),
        ({"training_optimiser": 1}, "training.optimiser=1: expected a mapping of learning_rate"),
        (
            {"training_optimiser": {"learning_rate": -1}},
            "training.optimiser.learning_rate=-1: expected a positive number",
        ),
        (
            {"training_optimiser": {"learning_rate": float("nan")}},
            "training.optimiser.learning_rate=nan: expected a positive number",
        ),
        (
            {"training_optimiser": {"learning_rate": 1, "warm_up_steps": 21}},
            "training.optimiser.warm_up_steps=21: expected at most steps=20",
        ),
        (
            {"training_optimiser": {"learning_rate": 1, "betas": [0.9, 1]}},
            "training.optimiser.betas=1: expected two numbers from 0 to below 1",
        ),
        (
            {"training_optimiser": {"learning_rate": 1, "final_fraction": 1.5}},
            "training.optimiser.final_fraction=1.5: expected a number from 0 to 1",
        ),
        (
            {"training_optimiser": {"learning_rate": 1, "clip": 0}},
            "training.optimiser.clip=0: expected a positive number or null",
        ),
        ({"parallel": {"context": 0}}, "parallel.context=0: expected an integer >= 1"),
        ({"output_checkpoint_every": True}, "output.checkpoint_every=True: expected an integer"),
    ],
)
def test_what_is_wrong_is_told_with_its_section(changes, told):
    with pytest.raises(ValueError) as caught:
        config.from_values(values(**changes))
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data_source": "internet"}, "data.source='internet': expected one of text, copy, "),
        ({"data_options": {"pears": 2}}, "data.options.pears: no such option; there are pairs, "),
        ({"data_options": {"pairs": 99}}, "data.pairs=99: expected at most 4"),
        ({"model_attention": "dilated-streamed"}, "model.attention='dilated-streamed'"),
        ({"model_attention": "attention"}, "model.attention='attention'"),
        ({"model_colour": 1}, "model.colour: no such field; there are vocab_size, "),
        ({"model_max_seq_len": 8}, "model.max_seq_len=8: expected at least data.seq_len=16"),
    ],
)
def test_what_the_model_and_the_data_refuse_is_told_as_the_file_calls_it(changes, told):
    asked = config.from_values(values(**changes))
    with pytest.raises(ValueError) as caught:
        model.language_model(asked, sources.build(asked.data))
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "changes", "told"),
    [
        (
            2,
            {"parallel": {"context": 2}},
            "parallel.context=2: expected 1, or in model.attention a variant over ranks",
        ),
        (
            1,
            {"parallel": {"context": 2}, "model_attention": "ring-dilated"},
            "parallel.context=2: expected a divisor of the number of processes, 1; start them by",
        ),
        (3, {}, "data.batch=4: expected a multiple of the 3 processes that share it"),
        (2, {"training_micro_batch": 4}, "training.micro_batch=4: expected a divisor of a process"),
    ],
)
def test_work_that_processes_cannot_share_is_refused_before_they_meet(ranks, changes, told):
    asked = config.from_values(values(**changes))
    order = VARIANTS[asked.model["attention"]].shard_order
    with pytest.raises(ValueError) as caught:
        run.check_place(asked, ranks, order)
    assert str(caught.value).startswith(told)


def test_a_file_that_is_no_configuration_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {steps: 1")
    with pytest.raises(ValueError, match=r"c\.yaml: line 1: expected ',' or '}'"):
        config.read(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"c\.yaml: expected the sections model, data"):
        config.read(path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_configurations_that_can_be_run(path):
    text = path.read_text(encoding="utf-8")
    assert plain_yaml.loads(text) == yaml.safe_load(text)
    made = config.read(path)
    source = sources.build(made.data)
    source.batch("validation", made.training.evaluation_batches - 1)
    order = VARIANTS[model.language_model(made, source).attention].shard_order
    run.check_place(made, made.parallel.context, order)
    assert path.relative_to(Path(config.__file__).parents[2]).as_posix() in text


def test_the_digest_is_of_what_is_said_not_of_the_order():
    one = values()
    other = dict(reversed(one.items()))
    assert list(one) != list(other)
    found = [config.digest(config.from_values(x).to_json()) for x in (one, other)]
    assert found[0] == found[1]
    assert found[0] != config.digest(config.from_values(values(training_seed=1)).to_json())
