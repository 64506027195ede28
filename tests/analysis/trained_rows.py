"""Rows of the frame that hold trainings whose losses are known."""

from experiments.schema import Learning, Training
from experiments.training.recipes import RECIPES, TEXT
from tests.analysis.claims_cases import NO_BRANCHES, row

# What a model had still to learn when it had made half of its steps.
HALF_WAY = 0.5


def trained(
    variant,
    values,
    *,
    measure="loss",
    recipe="text-smoke",
    step_flops=1000,
    parameters=10**6,
    of_three=3.0,
    **case,
):
    """A row of as many trainings as there are values: the loss, or the accuracy, of each.

    Evaluated half-way, with a loss that is larger by HALF_WAY, and at the end. of_three: loss of
    the n-gram model of order 3.
    """
    case = {"seq_len": 256, "batch": 8} | case
    if variant == "dense":
        case = NO_BRANCHES | case
    one = row(variant, **case)
    path = one["path"].replace(".json", f"-{step_flops}-{recipe}.json")
    return one | {
        "recipe": recipe,
        "head_offset": "modulo",
        "useful_flops": step_flops,
        "learning": _learning(recipe, parameters, of_three),
        "trainings": tuple(_training(recipe, seed, measure, v) for seed, v in enumerate(values)),
        "path": path,
        "paths": (path,),
    }


def blocks(values, pattern="strided", sparsity=0.9, **case):
    """Of block-sparse attention."""
    own = {"pattern": pattern, "sparsity": sparsity, "block_size": 64}
    return trained("block-sparse", values, **(NO_BRANCHES | own | case))


def _learning(recipe, parameters, of_three):
    source = RECIPES[recipe].source
    is_text = source == TEXT
    return Learning(
        source="python" if is_text else source,
        sha256=64 * "0" if is_text else None,
        packages=[] if is_text else None,
        facts={},
        parameters=parameters,
        n_gram_losses={"3": of_three, "5": of_three - 0.5} if is_text else None,
    )


def _training(recipe, seed, measure, value):
    steps = RECIPES[recipe].training.steps
    loss, accuracy = (value, 0.5) if measure == "loss" else (1.0, value)
    evaluated = [
        {"step": steps // 2, "loss": loss + HALF_WAY, "accuracy": accuracy / 2},
        {"step": steps, "loss": loss, "accuracy": accuracy},
    ]
    return Training.model_validate(
        {
            "seed": seed,
            "steps": steps,
            "steps_s": 1.0,
            "step_losses": [loss],
            "evaluations": evaluated,
            "tokens": 1024,
            "by_position": [],
            "by_distance": [],
        }
    )
