"""`quality`: names of systems, lessons, tables, choices and numbers, by known records."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis import catalogue
from analysis.experiments.quality import cells, naming
from analysis.experiments.quality import choices as quality_choices
from analysis.experiments.quality import numbers as quality_numbers
from analysis.experiments.quality import views as quality_views
from analysis.records import learnt
from analysis.selection import views
from analysis.statistics.intervals import Interval
from experiments.cost.pairs import useful_flops
from tests.analysis import synthetic
from tests.analysis import synthetic_trainings as known
from tests.analysis.quality_cases import (
    MAIN,
    MAIN_SLUG,
    RECALL,
    TEXT,
    WHOLE,
    WHOLE_SLUG,
    all_cases,
    blocks,
    branched,
    case,
    lesson,
    load,
    write,
)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        root = tmp_path_factory.mktemp("quality") / "published"
        write(root, all_cases(), synthetic.CPU)
        yield load(root, patched)


@pytest.fixture
def keys(monkeypatch):
    """Numbers are named after these cases."""
    monkeypatch.setattr(quality_numbers, "_cases", lambda: iter(all_cases()))


def _main(frame, task):
    found = quality_views.main_lessons(views.view(frame, "quality"))
    return next(one for one in found if one.task == task)


def _rows(frame, name) -> list[dict]:
    made = catalogue.tables("quality")[name](frame, "auto")
    return [dict(zip(made.columns, row, strict=True)) for row in made.rows]


def test_a_system_is_called_by_its_pattern_and_the_same_at_every_length():
    for n in (64, 256):
        cells_ = branched(("text-smoke", n), MAIN).cells()
        assert naming.slug(cells_) == MAIN_SLUG
        assert naming.label(cells_) == "Dilated n/16·n/8·n/4, r 1·2·4"
    uneven = case("dilated-sdpa", *TEXT, segment_lengths=(100, 256), dilation_rates=(1, 4)).cells()
    assert naming.slug(uneven) == "dilated-sdpa-w100+256-r1+4"
    assert naming.label(uneven) == "Dilated 100·256, r 1·4"
    offset = branched(TEXT, MAIN, head_offset="block").cells()
    assert naming.slug(offset) == f"{MAIN_SLUG}-block-offset"
    strided = blocks(TEXT, "strided", 0.95).cells()
    assert naming.slug(strided) == "block-sparse-sdpa@95-strided"
    assert naming.label(strided) == "Strided 95 %"


def test_systems_that_share_a_name_say_more():
    many = ((16, 8, 4, 2), (1, 2, 4, 8)), ((16, 5, 4, 2), (1, 2, 4, 8))
    rows = [branched(("text-smoke", 320), one).cells() for one in many]
    first, second = naming.names(rows)
    assert first.startswith("Dilated n/16 to n/2, r 1 to 8 (4)")
    assert first.endswith("n/16·n/8·n/4·n/2, r 1·2·4·8") and "n/5" in second
    sizes = [blocks(TEXT, "random", size=size).cells() for size in (4, 8)]
    assert naming.names(sizes) == ["Random 90 %, blocks of 4", "Random 90 %, blocks of 8"]


def test_looks_are_told_apart(frame):
    looks = naming.looks(row for _, row in frame.iterrows())
    assert len({(one.color, one.marker) for one in looks.values()}) == len(looks)
    assert looks["dense"].color == "#000000"


def test_the_main_lesson_has_most_systems_and_dense_comes_first(frame):
    lessons = quality_views.lessons(views.view(frame, "quality"))
    assert [(one.task, one.seq_len) for one in lessons] == [
        ("text", 256), ("text", 128), ("text", 64), ("recall", 128),
    ]  # fmt: skip
    text = lessons[0]
    assert len(text.learners) == len(lesson(TEXT))
    assert text.learners[0] is text.dense
    ranked = text.best_first()
    assert ranked[0] is text.dense
    gaps = [text.score(one).value for one in ranked]
    assert gaps == sorted(gaps)
    kinds = [one.kind for one in text.of_each_kind()]
    assert len(kinds) == len(set(kinds)) == 6


def test_what_stands_for_a_kind_is_not_chosen_by_its_score(frame):
    """Of two schedules that of more branches, of two windows the less sparse: both learnt less."""
    text = _main(frame, "text")
    found = {one.kind: one for one in text.of_each_kind()}
    assert found["branches"].slug == MAIN_SLUG
    by = {one.slug: text.score(one).value for one in text.learners}
    assert by[WHOLE_SLUG] < by[MAIN_SLUG]
    assert found["local_window"].row["sparsity"] == 0.9
    # Turned around: what had the lowest losses has the highest.
    worse = {
        slug: [one.model_copy(update={"evaluations": turned(one)}) for one in row["trainings"]]
        for slug, row in ((one.slug, one.row) for one in text.learners)
    }
    other = replace(
        text,
        learners=tuple(
            replace(one, row=one.row.to_dict() | {"trainings": worse[one.slug]})
            for one in text.learners
        ),
    )
    assert other.score(other.dense).value > other.score(other.learners[-1]).value
    assert [one.slug for one in other.of_each_kind()] == [one.slug for one in text.of_each_kind()]


def turned(training):
    """The evaluations, with what is lacking to 10 bits as the loss."""
    return [one.model_copy(update={"loss": 10.0 - one.loss}) for one in training.evaluations]


def test_another_variant_of_the_same_values_is_the_same_kind():
    """Names, looks, choices and keys of a kind stay where a schedule is computed by another."""
    fused = branched(TEXT, MAIN, "dilated-triton")
    made = [case("dense", *TEXT), fused, branched(TEXT, MAIN, "dilated-detached")]
    rows = [one.cells() for one in made]
    assert naming.names(rows)[1] == "Dilated n/16·n/8·n/4, r 1·2·4"
    assert naming.kind(rows[1]) == naming.kind(branched(TEXT, MAIN).cells()) == "branches"
    assert [one.label for one in naming.looks(rows).values()] == naming.names(rows)
    other = branched(TEXT, MAIN, "head-partitioned").cells()
    assert naming.kind(other) == "head-partitioned"

    def of_mixing(cells_):
        learners = (quality_views.Learner(one, naming.label(one), None) for one in cells_)
        found = quality_choices.choices(quality_views.Lesson(None, "text", tuple(learners)))
        return [(one.first.row["variant"], one.second.row["variant"]) for one in found]

    assert of_mixing(rows) == [("dilated-triton", "dilated-detached")]
    # Beside the other one both say what computes them, and one is enough for a choice.
    both = [rows[0], branched(TEXT, MAIN).cells(), *rows[1:]]
    assert naming.names(both)[1:3] == [
        "Dilated n/16·n/8·n/4, r 1·2·4, dilated-sdpa",
        "Dilated n/16·n/8·n/4, r 1·2·4, dilated-triton",
    ]
    assert [one.label for one in naming.looks(both).values()][:3] == naming.names(both)[:3]
    assert of_mixing(both) == [("dilated-sdpa", "dilated-detached")]


def test_scores_are_means_over_all_seeds_of_all_rounds(frame):
    for at in (TEXT, RECALL):
        one = _main(frame, {TEXT: "text", RECALL: "recall"}[at])
        for made in lesson(at):
            own = next(x for x in one.learners if x.slug == naming.slug(made.cells()))
            assert len(one.scores(own)) == 2 * synthetic.ROUNDS
            expected = known.loss(made) if at is TEXT else 100 * known.accuracy(made)
            assert one.score(own).value == pytest.approx(expected)
            low, high = one.score(own).low, one.score(own).high
            assert low < expected < high


def test_the_table_of_text_holds_what_dense_attention_has_over_each(frame):
    rows = {(row["System"], row["Length"]): row for row in _rows(frame, "text")}
    assert len(rows) == len(lesson(TEXT)) + 4
    dense, window = rows["Dense", "256"], rows["Local window 95 %", "256"]
    assert (dense["More than dense"], dense["Density"]) == (None, 1.0)
    assert window["More than dense"].value == pytest.approx(0.04 * 0.95 / 0.9)
    assert window["More than dense"].text.startswith("+0.042 [+0.")
    made = blocks(TEXT, "local_window", 0.95)
    assert window["Step (ms)"].value == pytest.approx(known.step_ms(made))
    assert window["GFLOPs a step"] == pytest.approx(useful_flops(made) / 1e9, rel=1e-6)


def test_at_equal_flops_the_dearer_training_is_cut_short(frame):
    text = _main(frame, "text")
    own = next(one for one in text.learners if one.slug == WHOLE_SLUG)
    dense, made = case("dense", *TEXT), branched(TEXT, WHOLE)
    # Evaluated after 2 and 4 of 4 steps.
    step = 4 * useful_flops(made) / useful_flops(dense)
    first = known.loss(dense) + (known.FIRST_LOSS[True] - known.loss(dense)) / 4
    cut = np.interp(math.log(step), np.log([2, 4]), [first, known.loss(dense)])
    found = text.shortfall(own, equal_flops=True)
    assert found.value == pytest.approx(known.loss(made) - cut, rel=1e-3)


def test_the_table_of_recall_says_from_where_on_answers_are_missed(frame):
    rows = {row["System"]: row for row in _rows(frame, "recall")}
    assert {row["Task"] for row in rows.values()} == {"recall"}
    for made, name in ((blocks(RECALL, "random"), "Random 90 %"),
                       (blocks(RECALL, "local_window"), "Local window 90 %")):  # fmt: skip
        row = rows[name]
        less = 100 * (known.accuracy(case("dense", *RECALL)) - known.accuracy(made))
        assert row["Less than dense"].value == pytest.approx(less)
        first = next(d for d in known.distances(made) if d >= known.reach(made))
        assert row["Half of dense from"] == str(first)
    assert rows["Dense"]["Half of dense from"] is None
    assert rows["Top-k 90 %"]["Half of dense from"] == "64"


def test_from_where_on_answers_are_missed_is_by_the_whole_interval(frame):
    """A tenth at far distances of every seed; or of half of them, and all of the others."""
    recall = _main(frame, "recall")
    own = next(one for one in recall.learners if one.name == "Top-k 90 %")
    assert quality_views.falls_off(own, recall.dense) == 64

    def found(share, place):
        parts = [
            one.model_copy(update={"accuracy": share if one.first >= 64 else 0.95})
            for one in own.row["trainings"][place].by_distance
        ]
        return own.row["trainings"][place].model_copy(update={"by_distance": parts})

    seeds = [found(0.0 if place % 2 else 0.9, place) for place in range(6)]
    other = replace(own, row=own.row.to_dict() | {"trainings": seeds})
    shares = learnt.by_range(other.row, "by_distance", learnt.ACCURACY)[64]
    assert np.mean(shares) == pytest.approx(0.45) and known.DENSE_NEAR / 2 == 0.49
    assert quality_views.falls_off(other, recall.dense) is None


def test_choices_differ_in_one_thing_and_are_judged_by_their_interval(frame):
    rows = [row for row in _rows(frame, "choices") if row["Task"] == "text, 256"]
    by = {(row["First"], row["Second"]): row for row in rows}
    mixing = by["exact", "detached"]
    assert mixing["Gain of the first"].value == pytest.approx(known.DETACHED)
    assert (mixing["It is"], mixing["FLOPs, over the second"]) == ("better", 1.0)
    offset = by["modulo", "block"]
    assert offset["Gain of the first"].value == pytest.approx(known.BLOCK_OFFSET)
    assert offset["It is"] == "cannot tell"
    names = [naming.branches(branched(TEXT, one).cells()) for one in (MAIN, WHOLE)]
    schedules = by[tuple(names)]
    assert schedules["Gain of the first"].value == pytest.approx(-known.OF_BRANCH)
    assert len(rows) == 3
    ratio = known.step_ms(branched(TEXT, MAIN)) / known.step_ms(branched(TEXT, WHOLE))
    assert schedules["Step time, over the second"].value == pytest.approx(ratio)


def test_of_many_schedules_each_is_set_against_the_first():
    rates = [((2**k, 1), (1, 2**k)) for k in range(1, 8)]
    made = [branched(TEXT, one) for one in rates]
    learners = [quality_views.Learner(one.cells(), naming.label(one.cells()), None) for one in made]
    found = list(quality_choices.choices(quality_views.Lesson(None, "text", tuple(learners))))
    assert len(found) == len(made) - 1
    assert {one.first for one in found} == {learners[0]}


@pytest.mark.parametrize(
    ("bounds", "word"),
    [((0.1, 0.3), "better"), ((-0.3, -0.1), "worse"), ((-0.1, 0.3), "cannot tell"),
     ((math.nan, math.nan), "cannot tell"), ((0.0, 0.0), "cannot tell")],
)  # fmt: skip
def test_a_verdict_is_by_the_interval(bounds, word):
    assert cells.verdict(Interval(0.2, *bounds, 0.95)) == word
    assert cells.verdict(None) == "–"


def test_what_is_learnt_is_said_with_its_licences(frame):
    rows = _rows(frame, "data")
    text, recall = rows[0], rows[-1]
    assert (text["SHA-256"], text["Packages and licences"]) == (12 * "a", "stdlib 3.12 (PSF-2.0)")
    assert (text["Task"], text["Lengths"]) == ("text", "64, 128, 256")
    assert text["n-grams (bits per byte)"] == "3: 2.900, 5: 2.300"
    assert (recall["Task"], recall["Chance (%)"], recall["SHA-256"]) == ("recall", "6.25", "–")


def test_numbers_follow_the_records(frame, keys):
    found = catalogue.numbers(frame, "quality")
    assert found["quality.text.loss.dense"]["value"] == pytest.approx(known.LOSS[True])
    less = found[f"quality.text.shortfall.{WHOLE_SLUG}"]
    assert less["value"] == pytest.approx(2 * known.OF_BRANCH)
    assert less["low"] < less["value"] < less["high"]
    assert found[f"quality.text.shortfall.{WHOLE_SLUG}.word"]["text"] == "worse than"
    assert len(less["records"]) == 2 * synthetic.ROUNDS
    accuracy = found["quality.recall.accuracy.dense"]
    assert accuracy["value"] == pytest.approx(100 * known.DENSE_NEAR)
    assert found["quality.text.n_gram.5"]["text"] == "2.300"
    assert found["quality.text.kind.branches"]["text"] == "Dilated n/16·n/8·n/4, r 1·2·4"
    assert found["quality.text.choice.mixing.word"]["text"] == "better than"
    assert found["quality.text.choice.offset.word"]["text"] == "not told apart from"
    assert found["quality.text.choice.schedule.pairs"]["value"] == 1
    assert found["quality.recall.half_from.block-sparse-sdpa@90-top-k"]["value"] == 64
    assert found["quality.text.seeds.dense"]["value"] == 2 * synthetic.ROUNDS


def test_a_step_of_a_training_is_no_pass_of_an_attention(frame, keys):
    assert views.view(frame, "quality").series("forward_backward") == ()
    found = catalogue.numbers(frame, "quality")
    assert found["quality.training.points"]["value"] == 0


def test_of_one_seed_nothing_is_told_apart(frame, keys):
    alone = frame.assign(trainings=[one[:1] for one in frame["trainings"]])
    by = {row["System"]: row for row in _rows(alone, "text") if row["Length"] == "256"}
    assert by["Local window 90 %"]["More than dense"].text == "+0.040"
    assert {row["It is"] for row in _rows(alone, "choices")} == {"cannot tell"}
    found = catalogue.numbers(alone, "quality")
    assert found["quality.text.loss.dense"]["low"] is None


def test_a_share_has_bounds_between_nothing_and_all(frame):
    recall = _main(frame, "recall")
    for one in recall.learners:
        assert 0 <= recall.score(one).low <= recall.score(one).high <= 100
    wide = [
        tuple(
            one.model_copy(
                update={"evaluations": [one.evaluations[-1].model_copy(update={"accuracy": share})]}
            )
            for one, share in zip(trainings[:2], (0.0, 0.9), strict=True)
        )
        for trainings in frame["trainings"]
    ]
    recall = _main(frame.assign(trainings=wide), "recall")
    found = recall.score(recall.dense)
    assert (found.low, found.value, found.high) == pytest.approx((0.0, 45.0, 100.0))


def test_without_dense_attention_nothing_is_set_against_it(frame, keys):
    others = frame[frame["system"] != "dense"]
    assert {row["More than dense"] for row in _rows(others, "text")} == {None}
    assert {row["Half of dense from"] for row in _rows(others, "recall")} == {None}
    found = catalogue.numbers(others, "quality")
    assert found[f"quality.text.shortfall.{MAIN_SLUG}"]["value"] is None
    assert found.keys() == catalogue.numbers(frame, "quality").keys()


def test_a_case_that_was_not_trained_is_listed_and_left_out(tmp_path, monkeypatch, keys):
    root = tmp_path / "published"
    write(root, lesson(TEXT), synthetic.CPU, lost=(MAIN_SLUG,))
    found = load(root, monkeypatch)
    assert len(_rows(found, "text")) == len(lesson(TEXT)) - 1
    (lost,) = _rows(found, "censored")
    assert (lost["Status"], lost["Cases"]) == ("timeout", "1")
    made = catalogue.numbers(found, "quality")
    assert made[f"quality.text.loss.{MAIN_SLUG}"]["value"] is None
    assert made["quality.recall.accuracy.dense"]["value"] is None


def test_values_are_read_between_evaluations_and_not_beyond_them(frame):
    dense = _main(frame, "text").dense.row
    whole = learnt.flops(dense)
    assert learnt.values_at(dense, whole) == pytest.approx(learnt.values(dense))
    assert learnt.values_at(dense, 1.1 * whole) is None
    assert learnt.values_at(dense, 0.4 * whole) is None
