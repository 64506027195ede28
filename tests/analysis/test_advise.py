"""Advice on synthetic records, whose times are known: ranking, limits, refusals."""

import json
import math

import pandas as pd
import pytest

from analysis.advise import Question, Refused, advise
from analysis.advise.__main__ import main, memory
from analysis.advise.answer import Option, gain_of, input_bytes
from analysis.advise.interpolation import Point
from analysis.advise.words import in_words
from analysis.statistics import intervals
from analysis.statistics.rounds import RoundSamples
from analysis.statistics.spread import PLAIN
from tests.analysis import synthetic
from tests.analysis.synthetic import CPU

GB = 1e9


def ask(frame, seq_len, heads=8, head_dim=64, **more):
    return advise(frame, Question(seq_len, heads, head_dim, **more))


def _rows_of(frame, option):
    """The rows of the frame that the option is made of."""
    return frame[[bool({*paths} & {*option.records}) for paths in frame["paths"]]]


def _slower(samples):
    return tuple(
        one._replace(replicates=tuple(tuple(3 * t for t in r) for r in one.replicates))
        for one in samples
    )


def true_ms(frame, option, seq_len):
    rows = frame[frame["system"] == option.system]
    case = rows[[option.records[0] in paths for paths in rows["paths"]]].iloc[0]
    scale, power = synthetic.SPEED[case["variant"]]
    return 0.3 + scale * (seq_len / 1024) ** power * case["batch"] * case["heads"] / 8


def test_a_measured_setting_is_ranked_by_its_medians(laptop):
    answer = ask(laptop, 4096, is_causal=False, dtype="float32")
    times = [option.time.value for option in answer.ranked]
    assert times == sorted(times) and len(times) > 8
    assert {option.basis for option in answer.ranked} == {"measured"}
    dense = answer.best("dense")
    own = _rows_of(laptop, dense)
    assert dense.time.value == own.iloc[0]["median_ms"]
    assert dense.time.low < dense.time.value < dense.time.high
    assert dense.records and all(command.startswith("python -m") for command in dense.commands)


def test_between_lengths_the_fit_answers_and_its_interval_holds_the_truth(laptop):
    answer = ask(laptop, 3000, is_causal=True, dtype="float32")
    option = next(o for o in answer.ranked if o.system == "dilated-gather")
    assert option.basis == "interpolated" and len(option.lengths) >= 3
    assert option.lengths[0] < 3000 < option.lengths[-1]
    assert option.time.value == pytest.approx(true_ms(laptop, option, 3000), rel=0.02)
    assert len(option.records) == synthetic.ROUNDS * len(option.lengths)


def test_an_interval_stays_between_the_measured_neighbours(laptop):
    answer = ask(laptop, 3000, is_causal=True, dtype="float32")
    option = next(o for o in answer.ranked if o.system == "dilated-gather")
    ends = [
        next(o for o in ask(laptop, n, is_causal=True).ranked if o.system == option.system)
        for n in (2048, 4096)
    ]
    assert ends[0].time.low <= option.time.low and option.time.high <= ends[1].time.high


def test_what_is_computed_marks_the_options_and_dense_comes_first(laptop):
    answer = ask(laptop, 4096, is_causal=False)
    assert answer.kinds[0] == "dense"
    by_system = {option.system: option for option in answer.ranked}
    assert by_system["block-sparse@98"].computes == "98 % sparse, dilated blocks of 64"
    own = _rows_of(laptop, by_system["dense"])
    assert set(by_system["dense"].density) == set(own["realised_density"])
    for system in ("dilated-sdpa", "dilated-gather"):
        found = {option.computes for option in answer.ranked if option.system == system}
        assert "dilated 1024/2048/2048 at rates 1/2/4" in found
    # Not the attention it is named after: it is no rival of those that are.
    left = {one.system: one for one in answer.left_out}
    assert left["head-partitioned"].kind == "function" and "head-partitioned" not in by_system
    assert by_system["multihead-dilated-sdpa"].computes.endswith(" + projections")
    assert max(by_system["block-sparse@95"].density) < 0.06


def test_options_that_cannot_be_told_from_the_first_are_marked(laptop):
    rows = laptop[laptop["system"].isin(["dense", "dense-flash"]) & (laptop["dtype"] == "float32")]
    answer = ask(rows, 4096, is_causal=False)
    assert [option.ties for option in answer.ranked] == [False, True]
    slow = rows.copy()
    slow["samples"] = [
        _slower(samples) if system == "dense-flash" else samples
        for system, samples in zip(rows["system"], rows["samples"], strict=True)
    ]
    assert [option.ties for option in ask(slow, 4096, is_causal=False).ranked] == [False, False]


def test_systems_that_ran_one_kernel_are_one_row_with_the_best_record(laptop):
    rows = laptop[laptop["system"].isin(["dense", "dense-flash"]) & (laptop["dtype"] == "float32")]
    same = rows.assign(backend="sdpa-flash")
    (option,) = ask(same, 4096, is_causal=False).ranked
    apart = ask(rows.assign(backend=rows["system"]), 4096, is_causal=False).ranked
    assert {*option.systems} == {"dense", "dense-flash"} == {one.system for one in apart}
    assert option.time == min((one.time for one in apart), key=lambda time: time.value)
    text = in_words(ask(same, 4096, is_causal=False))
    assert " = ".join(option.systems) in text and "ran one kernel" in text


def _option(**rounds):
    """Measured once in each of these rounds, each of a day of its own."""
    samples = tuple(RoundSamples("", name, name, ((ms,),)) for name, ms in rounds.items())
    rows = pd.DataFrame({"status": ["ok"], "samples": [samples], "spread": [PLAIN]})
    time = intervals.time(samples, PLAIN)
    empty = ((0.0, 0.0), time, None, "measured", (1,), (), ())
    return Option("system", "name", "dense", *empty, point=Point(1, rows))


def test_systems_are_compared_within_the_rounds_that_both_have():
    ours, other = _option(a=10.0, b=10.0), _option(a=9.8, b=9.8, c=12.0)
    assert ours.time.value < other.time.value  # by a round that ours lacks
    assert gain_of(ours, other, "time") == pytest.approx(0.98)
    assert gain_of(other, ours, "time") == pytest.approx(1 / 0.98)
    # A slower round is slow for both; of one round alone a twentieth is a difference.
    assert gain_of(_option(a=1.0, b=9.0), _option(a=1.2, b=10.8), "time") == pytest.approx(1.2)
    assert gain_of(_option(a=1.0), _option(a=1.04), "time") == 1
    # Without a round in common both intervals count.
    assert gain_of(_option(a=9.0, b=11.0), _option(c=10.0, d=13.0), "time") == 1
    apart = gain_of(_option(a=9.0, b=9.1), _option(c=40.0, d=40.4), "time")
    assert apart == pytest.approx(math.sqrt(40.0 * 40.4 / 9.0 / 9.1))


def test_what_does_not_fit_is_left_out_with_its_need(laptop):
    free = ask(laptop, 4096, is_causal=False)
    need = {option.system: option.memory.value for option in free.ranked}
    limit = (need["dense"] + need["dilated-gather"]) / 2
    answer = ask(laptop, 4096, is_causal=False, memory_bytes=limit)
    kept = {option.system for option in answer.ranked}
    assert "dense" in kept and "dilated-gather" not in kept
    assert all(option.memory.high <= limit for option in answer.ranked)
    left = {one.system: one for one in answer.left_out if one.kind == "memory"}
    assert f"needs {need['dilated-gather'] / GB:.3g}"[:9] in left["dilated-gather"].reason


def test_memory_holds_the_peak_and_the_inputs(laptop):
    option = ask(laptop, 4096, is_causal=False).best("dense")
    peak = _rows_of(laptop, option)["peak_memory_bytes"].max()
    assert option.memory.value == peak + 3 * 4096 * 8 * 64 * 4
    training = Question(4096, 8, 64, pass_="forward_backward", dtype="float16")
    assert input_bytes(training, "dense") == 4 * 4096 * 512 * 2
    assert input_bytes(training, "multihead-dilated-sdpa") == (2 * 4096 * 512 + 4 * 512**2) * 2


def test_a_streamed_pass_is_given_nothing_that_is_held(laptop):
    answer = ask(laptop, 4194304, is_causal=True, memory_bytes=2**29)
    option = answer.best()
    assert option.system == "dilated-streamed"
    assert option.memory.value == pytest.approx(synthetic.STREAM_BYTES, rel=0.01)


def test_by_memory_ranks_by_memory(laptop):
    answer = ask(laptop, 4096, is_causal=False, by="memory")
    needs = [option.memory.value for option in answer.ranked]
    assert needs == sorted(needs)


def test_beyond_what_was_timed_it_refuses_and_names_the_range(laptop):
    with pytest.raises(Refused) as refused:
        ask(laptop, 10_000_000, is_causal=True)
    message = str(refused.value)
    assert "nothing is extrapolated" in message and "nearest 4,194,304" in message
    assert "batch 1, 8 heads of 64, float32, causal, forward: 512–4M tokens" in message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"heads": 7}, "heads 7: never measured on this machine, only 8, 12"),
        ({"head_dim": 80}, "head_dim 80: never measured on this machine, only 64, 128"),
        ({"dtype": "float64"}, "dtype float64: never measured on this machine, only"),
        ({"batch": 3}, "batch 3: never measured on this machine, only 1, 2"),
    ],
)
def test_a_setting_that_was_not_measured_is_refused_with_the_nearest(laptop, more, message):
    with pytest.raises(Refused) as refused:
        ask(laptop, 4096, **{"heads": 8, "head_dim": 64, **more})
    assert message in str(refused.value)
    assert "the nearest settings that were:" in str(refused.value)


def test_out_of_time_at_the_length_is_a_reason(both):
    answer = ask(both, 131072, 12, device="big", dtype="float16", is_causal=True)
    left = {one.system: one for one in answer.left_out}
    assert left["dense"].reason == "out of time at 131,072 tokens"
    assert left["dilated-gather"].reason == "out of memory at 131,072 tokens"
    assert left["dense"].kind == "status"
    assert answer.best().system == "dilated-triton"


def test_a_device_is_found_by_its_name_or_id(both):
    assert ask(both, 4096, device="a BIG gpu").machine == synthetic.GPU
    assert ask(both, 4096, device="2-core").machine == CPU
    with pytest.raises(
        Refused,
        match=f"device 'H100': no record of it yet; there are: .*A Big GPU.*{synthetic.CPU}",
    ):
        ask(both, 4096, device="H100")
    with pytest.raises(Refused, match="matches 2 machines; name one of"):
        ask(both, 4096, device="u")


def test_several_ranks_and_replicas_give_no_advice(laptop):
    answer = ask(laptop, 4096, batch=1, is_causal=True)
    assert not any("/p" in option.system for option in answer.ranked)
    frame = laptop.copy()
    frame.loc[frame["system"] == "dense-flash", "experiment"] = "as_published"
    systems = {option.system for option in ask(frame, 4096, is_causal=False).ranked}
    assert "dense-flash" not in systems and "dense" in systems


def test_a_rank_of_one_core_is_not_compared_with_all_cores(laptop, both):
    ranked = ask(laptop, 2048, batch=2, is_causal=False).ranked
    systems = {option.system for option in ranked}
    assert {"dense", "dilated-sdpa"} <= systems
    assert not any("ring" in system for system in systems)
    rings = laptop[laptop["world_size"].notna()]
    systems = {option.system for option in ask(rings, 2048, batch=2, is_causal=False).ranked}
    assert {"ring-standard", "ring-distributed", "ring-hilbert"} <= systems
    on_gpu = ask(both, 2048, batch=2, device="big", dtype="float16", is_causal=False)
    assert {"dense", "ring-standard"} <= {option.system for option in on_gpu.ranked}


def test_the_type_most_systems_were_measured_in_is_taken_and_said(both):
    answer = ask(both, 4096, device="big")
    assert answer.settled == ("dtype", "is_causal")
    assert ask(both, 4096, device="big", dtype="float32", is_causal=True).settled == ()


def test_a_case_of_several_experiments_is_taken_once(laptop):
    ranked = ask(laptop, 8192, is_causal=False).ranked
    dense = next(option for option in ranked if option.system == "dense")
    own = _rows_of(laptop, dense)
    assert {"comprehensive", "dilated", "block_sparse"} <= set(own["experiment"])
    (case,) = set(own["path"])
    assert case in dense.records and len(dense.records) == synthetic.ROUNDS
    assert dense.time == intervals.time(own.iloc[0]["samples"], own.iloc[0]["spread"])


@pytest.mark.parametrize(
    ("text", "number"),
    [("20GB", 20e9), ("16GiB", 16 * 2**30), ("512MB", 512e6), ("8g", 8e9), ("1.5 TB", 1.5e12)],
)
def test_memory_is_read_with_its_unit(text, number):
    assert memory(text) == number


def test_the_command_prints_a_table_or_json_and_fails_without_an_answer(laptop_root, capsys):
    given = ["--seq-len", "4096", "--no-causal", str(laptop_root)]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "Fastest: block-sparse@98" in text and "A  dense: 100 % of" in text
    assert main(["--json", *given]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ranked"][0]["system"] == "block-sparse@98"
    assert answer["question"]["pass"] == "forward" and answer["ranked"][0]["records"]
    assert main(["--seq-len", "99999999", str(laptop_root)]) == 1
    assert "nothing is extrapolated" in capsys.readouterr().err
    assert main(["--memory", "1KB", *given]) == 1
    assert "Nothing that was measured here fits." in capsys.readouterr().out
    assert main(["--heads", "0", *given]) == 1
    assert "heads: is 0, expected an integer >= 1" in capsys.readouterr().err
