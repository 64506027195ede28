"""Numbers: keys that do not depend on what was measured, words by sign, joins without doubles."""

import json

import pytest

from analysis.rendering import numbers
from analysis.selection import published
from tests.analysis import synthetic


def test_keys_are_the_same_whatever_was_measured(numbers_of):
    for experiment in published.EXPERIMENTS:
        full = numbers_of("both", experiment, synthetic.GPU)
        few, none = (numbers_of(frame, experiment) for frame in ("smoke", "nothing"))
        assert full.keys() == few.keys() == none.keys()
        measured = [sum(map(numbers.is_measured, one.values())) for one in (full, few, none)]
        assert measured[0] > measured[1] > measured[2]


def test_a_number_comes_with_interval_text_and_records(numbers_of):
    found = numbers_of("laptop", "comprehensive")
    gain = found["comprehensive.speedup.dilated-sdpa.b1.n8192"]
    expected = [
        synthetic.median_ms(c, synthetic.CPU)
        for v in ("dilated-gather", "dilated-sdpa")
        for c in synthetic.cases("comprehensive", "laptop")
        if (c.variant, c.seq_len, c.batch) == (v, 8192, 1)
    ]
    assert gain["value"] == pytest.approx(expected[0] / expected[1])
    assert gain["low"] < gain["value"] < gain["high"]
    assert gain["text"].startswith("3.69 [")
    assert len(gain["records"]) == 2 * synthetic.ROUNDS
    assert found["comprehensive.published.speedup.ring-dilated.b1.n8192"]["text"] == "17.22"


def test_words_follow_the_measured_sign(numbers_of):
    found = numbers_of("laptop", "comprehensive")
    word = "comprehensive.vs_dense.{}.b1.n2048.word"
    assert found[word.format("dilated-sdpa")]["text"] == "faster than"
    assert found[word.format("dilated-gather")]["text"] == "slower than"
    assert found[word.format("dense")]["text"] == "not compared with"


def test_what_was_not_measured_is_a_dash(numbers_of):
    found = numbers_of("smoke", "comprehensive")
    missing = found["comprehensive.time.dense.b1.n8192"]
    assert (missing["value"], missing["text"], missing["records"]) == (None, "–", [])
    json.dumps(found, allow_nan=False)


def test_the_crossover_lies_where_the_curves_cross(numbers_of):
    found = numbers_of("both", "dilated", synthetic.GPU)
    crossing = found["dilated.crossover.dilated-gather"]
    (a, p), (b, q) = synthetic.SPEED["dense"], synthetic.SPEED["dilated-gather"]
    assert crossing["value"] == pytest.approx(1024 * (b / a) ** (1 / (p - q)), rel=0.05)


def test_a_ratio_is_of_the_last_length_that_both_were_timed_at(numbers_of):
    found = numbers_of("both", "dilated", synthetic.GPU)
    assert found["dilated.series.longest"]["value"] == 131072
    assert found["dilated.series.vs_dense.dilated-sdpa.longest.tokens"]["value"] == 65536


def test_block_sparse_numbers_are_against_dense_attention(numbers_of):
    found = numbers_of("laptop", "block_sparse")
    gain = found["block_sparse.series.vs_dense.block-sparse@95.longest"]
    assert gain["value"] == pytest.approx((0.3 + 12 * 256) / (40 + 0.75 * 256))
    assert found["block_sparse.series.vs_dense.block-sparse@95.longest.tokens"]["value"] == 16384
    assert found["block_sparse.speedup.block-sparse@95.b1.n16384"]["value"] == gain["value"]
    assert found["block_sparse.published.speedup.block-sparse@95.b1.n8192"]["text"] == "4.15"
    assert found["block_sparse.series.density.block-sparse@95.longest"]["value"] == 13 / 256
    assert found["block_sparse.training.longest"]["value"] == 4096
    crossing = found["block_sparse.crossover.block-sparse@95"]
    assert crossing["value"] == pytest.approx(1024 * ((40 - 0.3) / (12 - 0.75)) ** 0.5, rel=0.02)
    assert "block_sparse.vs_dense.block-sparse@95.b1.n8192" not in found  # dense is the base


def test_rates_are_of_useful_work_and_share_the_lower_ceiling(numbers_of):
    found = numbers_of("laptop", "block_sparse")
    case = next(
        c for c in synthetic.cases("block_sparse", "laptop")
        if c.sparsity == 0.9 and c.seq_len == 16384
    )  # fmt: skip
    flops = 4 * 8 * 16384**2 * 64 * 26 / 256
    rate = flops / synthetic.median_ms(case, synthetic.CPU) / 1e6
    assert found["block_sparse.rate.block-sparse@90"]["value"] == pytest.approx(rate)
    assert found["block_sparse.rate.block-sparse@90"]["text"].endswith("GFLOP/s")
    assert found["block_sparse.rate.block-sparse@90.share"]["value"] == pytest.approx(rate / 200)
    assert found["block_sparse.rate.block-sparse@90.tokens"]["value"] == 16384


def test_backends_are_against_scores_that_are_written_down(numbers_of):
    found = numbers_of("both", "backends", synthetic.CPU)
    gain = found["backends.series.vs_base.dense-flash.longest"]
    size = (found["backends.series.vs_base.dense-flash.longest.tokens"]["value"] / 1024) ** 2
    assert size > 1
    assert gain["value"] == pytest.approx((0.3 + 36 * size) / (0.3 + 12 * size))
    assert found["backends.series.vs_base.dense-flash.shortest.tokens"]["value"] == 512
    assert found["backends.series.vs_base.dense-cudnn.longest"]["value"] is None


def _write(path, data):
    path.write_text(json.dumps(data))
    return path


def test_join_merges_numbers_and_counts_verdicts(tmp_path):
    def side(verdict, basis="records"):
        return {"verdict": verdict, "basis": basis}

    def claim(writeup, sort, mechanism, **sides):
        none = dict.fromkeys(("as_published", "method", "consistency"))
        return {"writeup": writeup, "sort": sort, "mechanism": mechanism} | none | sides

    fails, holds = side("does not hold"), side("holds", "physics")
    judged = [
        claim("dilated", "claim", "slip", as_published=holds, method=fails),
        claim("dilated", "claim", "unknown", as_published=fails, method=fails),
        claim("dilated", "claim", "slip", as_published=holds, method=side("needs a card", "none")),
        claim("dilated", "consistency", "slip", consistency=fails),
        claim("dilated", "context", None),
        claim("comprehensive", "claim", None, as_published=fails),
        claim("comprehensive", "restatement", "slip", method=fails, consistency=holds),
    ]
    heads = [
        {"as_published": holds, "method": fails, "of_paper": False},
        {"as_published": None, "method": fails, "of_paper": False},
        {"as_published": None, "method": fails, "of_paper": True},
    ]
    data = {"mechanisms": {"slip": {}, "unknown": {}}, "headlines": heads, "claims": judged}
    measured = tmp_path / "a.json"
    numbers.save({"a.x": numbers.entry(1.5), "a.y": numbers.entry(None)}, measured)
    files = [
        measured,
        _write(tmp_path / "claims.json", data),
    ]
    out = tmp_path / "numbers.json"
    assert numbers.main(["--out", str(out), *map(str, files)]) == 0
    joined = numbers.read(out)
    assert joined["a.x"]["text"] == "1.50"
    assert joined["a.y"] == numbers.NOT_MEASURED
    expected = {
        "all.total": 4,
        "all.restatement": 1,
        "all.context": 1,
        "dilated.total": 3,
        "dilated.as-published.holds": 2,
        "dilated.method.does-not-hold": 2,
        "dilated.method.needs-a-card": 1,
        "dilated.method.holds": 0,
        "dilated.by-record": 2,
        "dilated.contradicts": 1,
        "comprehensive.agrees": 1,
        "comprehensive.method.does-not-hold": 0,  # restatements are not counted again
        "all.mechanism.slip": 1,  # of those that do not hold
        "dilated.mechanism.unknown": 1,
        "headlines.total": 3,
        "headlines.of-code": 2,
        "headlines.as-published.holds": 1,
        "headlines.method.does-not-hold": 2,
    }
    found = {key: joined[f"claims.{key}"]["value"] for key in expected}
    assert found == expected


def test_a_key_twice_names_both_files_and_the_key(tmp_path, capsys):
    files = [tmp_path / f"{name}.json" for name in "ab"]
    for file, value in zip(files, (1, None), strict=True):
        numbers.save({"k.x": numbers.entry(value)}, file)
    out = tmp_path / "numbers.json"
    assert numbers.main(["--out", str(out), *map(str, files)]) == 1
    message = capsys.readouterr().err
    assert "b.json: key 'k.x': is in" in message and "a.json" in message
    assert not out.exists()


def test_a_truncated_file_is_named(tmp_path, capsys):
    bad = tmp_path / "bad.json"
    bad.write_text('{"a": ')
    assert numbers.main(["--out", str(tmp_path / "n.json"), str(bad)]) == 1
    assert "bad.json: not JSON (truncated?)" in capsys.readouterr().err


def test_an_unknown_key_is_named_with_its_place_and_the_keys_like_it():
    with pytest.raises(numbers.NumbersError, match=r"^page.md.j2: unknown number 'no.such'$"):
        numbers.lookup({}, "no.such", "page.md.j2")
    known = {"ring.time.n512": numbers.entry(1), "ring.time.n1024": numbers.NOT_MEASURED}
    with pytest.raises(numbers.NumbersError, match="'ring.tme.n1024'; the nearest are ring.time."):
        numbers.lookup(known, "ring.tme.n1024", "page.md.j2")
    assert numbers.lookup(known, "ring.time.n1024", "page.md.j2") == "–"


def test_of_what_was_not_measured_a_file_holds_the_key_alone(tmp_path):
    crossover = numbers.entry(None, unit="tokens", text="not in the measured range")
    found = {"a.x": numbers.entry(2), "a.y": numbers.entry(None, unit="ms"), "a.z": crossover}
    numbers.save(found, tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    assert data == {"numbers": {"a.x": found["a.x"], "a.z": crossover}, "not_measured": ["a.y"]}
    assert numbers.read(tmp_path / "a.json") == found | {"a.y": numbers.NOT_MEASURED}
    (tmp_path / "b.json").write_text('{"a.x": 1}')
    with pytest.raises(numbers.NumbersError, match="b.json: holds no numbers"):
        numbers.read(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (12, "12"), (8192, "8,192"), (1234.5, "1,234"),
     (1.8765, "1.88"), (0.0512, "0.0512"), (3.2e-7, "3.2e-7"), (0, "0")],
)  # fmt: skip
def test_numbers_read_with_three_digits(value, text):
    from analysis.rendering.text import number

    assert number(value) == text


def test_intervals_share_decimals_until_they_span_decades():
    from analysis.rendering.text import interval

    assert interval(1.8765, 1.8, 1.954) == "1.88 [1.80, 1.95]"
    assert interval(-0.871, -1.0, -0.711) == "-0.871 [-1.000, -0.711]"
    assert interval(-0.871, -30.0, -0.711) == "-0.871 [-30, -0.711]"
    assert interval(836.2, 808.4, 891.0) == "836 [808, 891]"
    assert interval(1.5, float("nan"), 2.0) == "1.50"
    assert interval(0.0348, 1.2e-12, 6.7e8) == "0.0348 [1.2e-12, 6.7e8]"
