"""`memory`: series at one shape, peaks with their inputs, fits with the weights of all models."""

import csv
import io
import math

import pandas as pd
import pytest

from analysis import catalogue
from analysis.experiments.memory import figures
from analysis.experiments.memory import views as memory_views
from analysis.records import systems
from analysis.selection import published, views
from analysis.statistics import curves
from experiments import grid
from tests.analysis import synthetic


def _view(frame, machine="auto"):
    return views.view(frame, "memory", machine)


def _rows(frame, name, machine="auto"):
    made = catalogue.tables("memory")[name](frame, machine)
    return list(csv.DictReader(io.StringIO(made.to_csv())))


def test_no_system_has_two_patterns_in_a_picture():
    for name, tier in grid.load("memory").tiers.items():
        seen = {}
        for case in tier.cases:
            fixed = (case.pass_, case.dtype, case.is_causal, case.heads, case.head_dim, case.batch)
            key = (systems.key(case.variant, case.sparsity), *fixed)
            pattern = (case.segment_lengths, case.pattern, case.block_size, case.world_size)
            assert seen.setdefault(key, pattern) == pattern, (name, key)


@pytest.mark.parametrize("tier", ["laptop", "gpu"])
def test_every_system_has_lengths_enough_to_choose_a_model(tier):
    cases = grid.load("memory").tiers[tier].cases
    common = [c for c in cases if c.batch == 1]
    for pass_ in ("forward", "forward_backward"):
        lengths = {}
        for case in common:
            if case.pass_ == pass_:
                lengths.setdefault(case.variant, set()).add(case.seq_len)
        assert len(lengths) >= 9
        assert all(len(own) >= 6 for own in lengths.values())


def test_the_table_of_cards_is_the_published_one_on_a_gpu():
    cases = grid.load("memory").tiers["gpu"].cases
    for system in ("dilated-gather", "multihead-dilated-gather"):
        shapes = {
            (c.batch, c.heads, c.head_dim, c.seq_len)
            for c in cases
            if c.variant == system and c.dtype == "float16" and c.is_causal
        }
        assert {(4, 12, 64, n) for n in memory_views.VRAM_LENGTHS} == shapes
        for n in memory_views.VRAM_LENGTHS:
            assert published.value("dilated", system, 4, n, "vram") == n / 8 * (
                2 if "multihead" in system else 1
            )


def test_series_hold_all_systems_at_one_shape_with_their_own_lengths(laptop):
    forward, training = memory_views.together(_view(laptop))
    assert (forward.training, training.training) == (False, True)
    assert len(forward.systems) == len(training.systems) == 9
    eager = [int(n) for n in forward.timed("dense-eager")["seq_len"]]
    assert eager == [512, 1024, 1536, 2048, 3072, 4096]
    assert forward.timed("dense")["seq_len"].max() == 8192


def test_inputs_are_three_tensors_or_one_and_training_holds_one_more(laptop):
    token = 8 * 64 * 4
    for system, pass_, count in (
        ("dense", "forward", 3),
        ("dense", "forward_backward", 4),
        ("multihead-dilated-sdpa", "forward", 1),
        ("multihead-dilated-sdpa", "forward_backward", 2),
    ):
        row = memory_views.at(_view(laptop), system, 1024, pass_, batch=1)
        assert memory_views.inputs_bytes(row) == count * token * 1024
        assert memory_views.total_bytes(row) == row["peak_memory_bytes"] + count * token * 1024
    assert memory_views.total_bytes(None) is None


def test_what_a_token_takes_stands_beside_the_published_figure(laptop):
    by = {row["System"]: row for row in _rows(laptop, "per-token")}
    ring = by["StandardRingAttention"]
    assert (ring["Published (KB/token)"], ring["Batch"]) == ("37.281", "2")
    row = memory_views.at(_view(laptop), "ring-standard", 512, batch=2)
    expected = row["peak_memory_bytes"] / 1024 / 1024
    assert float(ring["Peak at 512 (KiB/token)"]) == pytest.approx(expected)
    assert float(ring["With inputs at 512 (KiB/token)"]) == pytest.approx(expected + 6)
    assert by["HilbertRingAttention"]["Published (KB/token)"] == "21.031"
    assert by["BlockSparseRingAttention (90 %)"]["Published (KB/token)"] == "21.531"
    assert ring["Longest"] == "8K"


def test_cards_are_compared_at_their_own_shape(both, laptop):
    rows = {(row["Length"], row["System"]): row for row in _rows(both, "vram", synthetic.GPU)}
    last = rows["32768", "MultiheadDilatedAttention"]
    assert last["Published (MiB)"] == "8,192"
    tensor = 4 * 32768 * 12 * 64 * 2 / 2**20
    peak = float(last["Forward: peak (MiB)"])
    assert float(last["Forward: with inputs (MiB)"]) == pytest.approx(peak + tensor)
    assert float(last["Training: with inputs (MiB)"]) == pytest.approx(
        float(last["Training: peak (MiB)"]) + 2 * tensor
    )
    here = {(row["Length"], row["System"]): row for row in _rows(laptop, "vram")}
    missing = here["32768", "MultiheadDilatedAttention"]
    assert (missing["Published (MiB)"], missing["Forward: peak (MiB)"]) == ("8,192", "")


def test_of_many_shapes_twelve_of_each_pass_are_fitted(laptop):
    few = memory_views.together(_view(laptop))
    same = laptop[laptop["batch"] == few[0].batch]
    many = pd.concat([same.assign(batch=same["batch"] * 2**i) for i in range(14)])
    found = memory_views.together(_view(many))
    assert [one.training for one in found] == 12 * [False] + 12 * [True]
    assert {one.batch for one in found[:12]} == {few[0].batch * 2**i for i in range(12)}
    told = "at most 12 shapes"
    for frame, is_cut in ((many, True), (laptop, False)):
        assert (told in catalogue.tables("memory")["growth"](frame, "auto").note) == is_cut


def test_growth_has_the_weights_of_all_models_and_what_ran_out(both):
    rows = _rows(both, "growth")
    eager = next(row for row in rows if row["System"] == "Eager softmax")
    weights = [eager[f"Weight of {model}"] for model in curves.MODELS]
    assert sum(float(weight) for weight in weights if weight) == pytest.approx(1, abs=1e-3)
    assert (eager["Lengths"], eager["Ran out"]) == ("1K–16K", "32K–128K")
    assert float(eager["k"]) == pytest.approx(1, abs=0.01)  # as synthetic memory grows
    assert eager["Model"] == "c + b n"
    few = [row for row in rows if row["Lengths"] == "2K–32K"]
    assert few and {row["Weight of c + a n^k"] for row in few} == {""}  # five lengths


def test_lengths_that_ran_out_stand_at_the_top_edge(both):
    axes = figures.scaling(both, "memory", synthetic.GPU).axes[0]
    assert [text.get_text() for text in axes.texts].count("out of memory") == 1
    lost = next(line for line in axes.lines if line.get_label() == "Eager: out of memory")
    assert list(lost.get_xdata()) == [32768, 65536, 131072]
    assert "Dense  $n^{1.00}$" in [text.get_text() for text in axes.texts]


def test_numbers_follow_the_records(both, numbers_of):
    found = numbers_of("both", "memory", synthetic.GPU)
    assert found["memory.forward.ran_out.dense-eager"]["value"] == 32768
    assert found["memory.forward.longest.dense-eager"]["value"] == 16384
    assert found["memory.forward.model.dense-eager"]["text"] == "c + b n"
    exponent = found["memory.training.exponent.dilated-sdpa"]
    assert exponent["low"] <= exponent["value"] <= exponent["high"]
    assert len(exponent["records"]) == 8 * synthetic.ROUNDS
    total = found["memory.forward.total.dilated-gather.n8192"]
    row = memory_views.at(_view(both, synthetic.GPU), "dilated-gather", 8192, batch=4)
    assert total["value"] == memory_views.total_bytes(row) / 2**20
    here = numbers_of("laptop", "memory")
    assert here["memory.forward.total.dilated-gather.n8192"]["text"] == "–"
    assert math.isfinite(here["memory.per_token.ring-hilbert"]["value"])
