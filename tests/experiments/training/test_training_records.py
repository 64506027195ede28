"""Records of trainings: what cannot be is refused, by name of the field."""

import copy
import json
import math

import pytest

from analysis.across import expected_trainings
from experiments import gate, grid, plausible, procedures, record, schema
from experiments.record import RecordError, parse
from experiments.training.recipes import RECIPES
from tests.analysis import synthetic

NAN, INF = float("nan"), float("inf")
GONE = object()


def _task(recipe="recall-smoke", variant="dilated-masked"):
    return next(
        task
        for task in grid.tasks("smoke", ["quality"])
        if (task.case.recipe, task.case.variant) == (recipe, variant)
    )


def _record(case) -> dict:
    """A record of a case of the quick tier, with trainings that can be."""
    made = synthetic.record(case, "smoke", synthetic.CPU)
    made["replicates"][0]["trainings"] = expected_trainings.trainings(case, 1.0)
    return {**made, "learning": expected_trainings.learning(case)}


def _with(data: dict, path: str, value) -> dict:
    """A copy in which one field is another; a function makes it of what is there."""
    data = copy.deepcopy(data)
    *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    at = data
    for key in above:
        at = at[key]
    new = value(at[last]) if callable(value) else value
    if new is GONE:
        del at[last]
    else:
        at[last] = new
    return data


def _checked(data: dict) -> schema.Record:
    found = schema.check(data, "it")
    gate.check_result("it", found)
    return found


@pytest.fixture(scope="module", params=["recall-smoke", "text-smoke"])
def valid(request):
    return _record(_task(request.param).case)


def test_what_they_are_made_of_is_valid(valid):
    found = _checked(valid)
    assert found.to_case() == _task(valid["case"]["recipe"]).case
    (one,) = found.replicates
    assert len(one.trainings) == RECIPES[valid["case"]["recipe"]].seeds
    assert (one.trainings[0].by_distance == []) == (valid["case"]["recipe"] == "text-smoke")
    assert json.loads(found.model_dump_json(by_alias=True))["case"] == valid["case"]


ONE = "replicates.0.trainings.0"


def _first_again(trainings):
    return [{**one, "seed": trainings[0]["seed"]} for one in trainings]


def _more(change, place=0):
    """One range of a list with other values."""
    return lambda ranges: [{**one, **change} if n == place else one for n, one in enumerate(ranges)]


# What the schema lets through, and what is told of it.
FAULTS = [
    ("replicates.0.trainings", lambda all_: all_[:1], "replicates.0.trainings: are 1, and "),
    ("replicates.0.trainings", _first_again, "replicates.0.trainings: two are of one seed"),
    (f"{ONE}.steps", lambda steps: steps + 1, f"{ONE}.steps: is "),
    (f"{ONE}.evaluations", lambda all_: all_[:-1], f"{ONE}.evaluations: expected those after"),
    (f"{ONE}.evaluations", lambda all_: all_[::-1], f"{ONE}.evaluations: expected those after"),
    (f"{ONE}.steps_s", 1000.0, f"{ONE}.steps_s: is 1000, and wall_s "),
    (f"{ONE}.by_position", lambda all_: all_[::-1], f"{ONE}.by_position: expected rising ranges"),
    (f"{ONE}.by_position", _more({"first": 2}), f"{ONE}.by_position: expected rising ranges"),
    (f"{ONE}.by_position", _more({"first": 3}, 1), f"{ONE}.by_position: expected ranges that beg"),
    (f"{ONE}.by_position", _more({"first": 0}), f"{ONE}.by_position: expected ranges that begin"),
    (f"{ONE}.by_position", _more({"first": 2**40}, -1), None),
    (f"{ONE}.tokens", lambda tokens: tokens - 1, f"{ONE}.by_position: has more tokens than were"),
    (f"{ONE}.tokens", lambda tokens: tokens + 1, f"{ONE}.by_position: has less tokens than were"),
    (f"{ONE}.by_position", [], f"{ONE}.by_position: has less tokens than were asked"),
    (f"{ONE}.by_position", _more({"loss": 9.0}), f"{ONE}.by_position: its mean loss is "),
    (f"{ONE}.by_position", _more({"accuracy": 0.0}), f"{ONE}.by_position: its mean accuracy is "),
    (
        f"{ONE}.evaluations",
        lambda all_: [*all_[:-1], {**all_[-1], "loss": all_[-1]["loss"] + 0.1}],
        f"{ONE}.by_position: its mean loss is ",
    ),
    ("learning", None, "learning: expected null unless models were trained"),
    ("replicates.0.trainings", None, "replicates: training gives samples_ms and trainings"),
    ("useful_flops", lambda flops: flops * 2, "useful_flops: is "),
    ("realised_density", lambda density: density * 0.9, "realised_density: is "),
    ("case.seq_len", 48, "case: is a point of no grid"),
    ("case.head_offset", "block", "case: is a point of no grid"),
]


@pytest.mark.parametrize(
    ("path", "value", "told"), FAULTS, ids=[f"{n}-{path}" for n, (path, *_) in enumerate(FAULTS)]
)
def test_what_cannot_be_is_told(valid, path, value, told):
    if told is None:
        last = len(valid["replicates"][0]["trainings"][0]["by_position"]) - 1
        value, told = _more({"first": 2**40}, last), f"{ONE}.by_position: has a range beyond seq_l"
    bad = _with(valid, path, value)
    with pytest.raises(RecordError) as caught:
        _checked(bad)
    assert str(caught.value).startswith(f"it: {told}")


def test_a_range_of_distances_has_no_more_tokens_than_were_asked():
    valid = _record(_task().case)
    bad = _with(valid, f"{ONE}.by_distance", _more({"tokens": 10**6}))
    with pytest.raises(RecordError, match=f"it: {ONE}.by_distance: has more tokens than were aske"):
        _checked(bad)
    # Of some tokens it is not known where their answer stands.
    _checked(_with(valid, f"{ONE}.by_distance", lambda ranges: ranges[:1]))


LONG = [1.0] * 101
# Path, value, and where it is not the path what is named.
HOSTILE = [
    (f"{ONE}.step_losses", [NAN], f"{ONE}.step_losses.0"),
    (f"{ONE}.step_losses", [-1.0], f"{ONE}.step_losses.0"),
    (f"{ONE}.step_losses", ["1.0"], f"{ONE}.step_losses.0"),
    (f"{ONE}.step_losses", []),
    (f"{ONE}.step_losses", LONG),
    (f"{ONE}.step_losses", "many"),
    (f"{ONE}.evaluations.0.loss", NAN),
    (f"{ONE}.evaluations.0.loss", INF),
    (f"{ONE}.evaluations.0.loss", 1e300),
    (f"{ONE}.evaluations.0.accuracy", 1.1),
    (f"{ONE}.evaluations.0.accuracy", NAN),
    (f"{ONE}.evaluations.0.step", 0),
    (f"{ONE}.evaluations.0.step", True),
    (f"{ONE}.evaluations", []),
    (f"{ONE}.evaluations", [{"step": 1, "loss": 1.0, "accuracy": 0.0}] * 101),
    (f"{ONE}.by_position", [{"first": 1, "tokens": 1, "loss": 1.0, "accuracy": 0.0}] * 65),
    (f"{ONE}.by_position.0.loss", NAN),
    (f"{ONE}.by_position.0.first", -1),
    (f"{ONE}.by_position.0.first", 2**63),
    (f"{ONE}.by_position.0.tokens", 0),
    (f"{ONE}.by_position.0.tokens", 1.0),
    (f"{ONE}.by_position.0.last", 1, f"{ONE}.by_position.0.last"),
    (f"{ONE}.by_distance", None),
    (f"{ONE}.seed", -1),
    (f"{ONE}.seed", 2**33),
    (f"{ONE}.seed", 1.0),
    (f"{ONE}.steps", 0),
    (f"{ONE}.steps_s", 0.0),
    (f"{ONE}.steps_s", NAN),
    (f"{ONE}.steps_s", 1e9),
    (f"{ONE}.tokens", 0),
    (f"{ONE}.tokens", 10**30),
    (f"{ONE}.weights", [1.0], f"{ONE}.weights"),
    (f"{ONE}.tokens", GONE),
    ("replicates.0.trainings", []),
    ("replicates.0.trainings", {}),
    ("replicates.0.trainings", lambda all_: all_ * 65),
    ("learning.facts", {"x": "<script>"}, "learning.facts.x"),
    ("learning.facts", {"x": NAN}, "learning.facts.x"),
    ("learning.facts", {str(n): n for n in range(33)}),
    ("learning.facts", {"a\nb": 1}, "learning.facts.a\\nb"),
    ("learning.parameters", 0),
    ("learning.parameters", 1e6),
    ("learning.source", "<b>python</b>"),
    ("learning.sha256", "0"),
    ("learning.packages", [{"name": "x"}], "learning.packages.0"),
    ("learning.n_gram_losses", {"3": NAN}, "learning.n_gram_losses.3"),
    ("learning.n_gram_losses", {"3": -1.0}, "learning.n_gram_losses.3"),
    ("learning", {}),
    ("learning", []),
    ("case.recipe", "none-such", "case: recipe='none-such': expected one of"),
    ("case.recipe", "x" * 10**5, "case: recipe='xxx"),
    ("case.recipe", None),
    ("case.recipe", 5),
    ("case.recipe", ["recall-smoke"]),
    ("case.recipe", GONE),
    ("case.head_offset", GONE),
    ("case.head_offset", "paper", "case: head_offset='paper': expected one of modulo, block"),
    ("case.head_offset", 1),
    ("case.dtype", "float16", "case: dtype='float16': expected float32 or bfloat16"),
    ("case.is_causal", False, "case: is_causal=False: expected true, of a training"),
    ("case.seq_len", -32),
    ("case.steps", 4, "case.steps"),
]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [(path, value, *(named or [path])) for path, value, *named in HOSTILE],
    ids=[f"{n}-{path}" for n, (path, *_) in enumerate(HOSTILE)],
)
def test_what_no_record_holds_is_refused_by_name(path, value, named):
    valid = _record(_task().case)
    *_, last = path.split(".")
    if last in ("last", "weights", "steps") and path != f"{ONE}.steps":
        # A field that there is not.
        bad = _with(valid, path.rpartition(".")[0], lambda held: {**held, last: value})
    else:
        bad = _with(valid, path, value)
    with pytest.raises(RecordError) as caught:
        _checked(bad)
    told = str(caught.value)
    assert told.startswith(f"it: {named}") and told.isprintable() and len(told) < 1000


@pytest.mark.parametrize(
    "text",
    [
        lambda text: text.replace('"step_losses": [', f'"step_losses": [{"1.0, " * 300_000}', 1),
        lambda text: text.replace('"trainings": [', f'"trainings": [{"[], " * 300_000}', 1),
    ],
)
def test_lists_without_end_are_not_even_read(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text(json.dumps(_record(_task().case))))
    with pytest.raises(RecordError, match="record.json: file"):
        parse(path)


@pytest.fixture(scope="module")
def of_attention(published):
    """A record of attention that counts."""
    found = next(p for p in published("dense_*forward") if p.parent.name > "2026-11-29")
    return json.loads(found.read_text(encoding="utf-8"))


def test_a_record_of_attention_has_nothing_learnt(of_attention):
    valid = _record(_task().case)
    _checked(of_attention)
    with pytest.raises(RecordError, match="it: learning: expected null unless models were traine"):
        _checked({**of_attention, "learning": valid["learning"]})
    trainings = valid["replicates"][0]["trainings"]
    bad = _with(of_attention, "replicates.0", lambda one: {**one, "trainings": trainings})
    told = "replicates.0.trainings: expected null, attention does not give it"
    with pytest.raises(RecordError, match=f"it: {told}"):
        _checked(bad)
    # All that is wrong, and not the first alone.
    found = schema.check(bad, "it")
    assert [*plausible.faults(found, procedures.PROCEDURES["attention"])] == [told]


def test_a_case_that_failed_learnt_nothing_unless_it_is_a_training(of_attention):
    learning = _record(_task().case)["learning"]
    lost = {"status": "oom", "reason": "too large", "replicates": [], "error": None}
    with pytest.raises(RecordError, match="it: learning: expected null unless models were traine"):
        _checked({**of_attention, **lost, "learning": learning})
    # What was known before the first training is told.
    for known in (learning, None):
        failed = {**_record(_task().case), **lost, "learning": known}
        assert _checked(failed).status == "oom"


@pytest.mark.parametrize("added", [{"recipe": "recall-smoke"}, {"head_offset": "modulo"}])
def test_a_case_of_attention_has_no_field_of_trainings(of_attention, added):
    (missing,) = {"recipe", "head_offset"} - {*added}
    with pytest.raises(RecordError, match=f"it: case.{missing}: Field required"):
        _checked(_with(of_attention, "case", lambda case: {**case, **added}))


def test_an_unknown_field_of_a_case_is_told_as_of_its_class(of_attention):
    with pytest.raises(RecordError, match="it: case.speed: Extra inputs are not permitted"):
        _checked(_with(of_attention, "case", lambda case: {**case, "speed": 9}))
    for case in ("dense", [], None, 5):
        with pytest.raises(RecordError, match="it: case: Input should be a valid dictionary"):
            _checked({**of_attention, "case": case})


def test_gradients_that_are_not_checked_are_null_and_those_that_are_are_not():
    valid = _record(_task().case)
    with pytest.raises(RecordError, match="it: error.gradient: expected null exactly where none"):
        _checked(_with(valid, "error.gradient", None))
    detached = {**valid, "variant": "dilated-detached"}
    with pytest.raises(RecordError, match="it: error.gradient: expected null exactly where none"):
        schema.check(detached, "it")
    found = schema.check(_with(detached, "error.gradient", None), "it")
    assert found.error.gradient is None and found.to_case().variant == "dilated-detached"


def test_a_rehearsal_of_trainings_is_held_to_their_procedure():
    found = schema.check(_record(_task().case), "it")
    assert procedures.of_case(found.to_case()).is_in(found.replicates)
    bad = schema.check(_with(_record(_task().case), "replicates.0.trainings", None), "it")
    assert not procedures.of_case(bad.to_case()).is_in(bad.replicates)


def test_what_is_written_is_what_is_read(tmp_path, valid):
    path = tmp_path / "record.json"
    record.write(path, valid)
    found = schema.load(path)
    losses = [one.evaluations[-1].loss for one in found.replicates[0].trainings]
    given = [one["evaluations"][-1]["loss"] for one in valid["replicates"][0]["trainings"]]
    assert losses == given and not any(map(math.isnan, losses))
