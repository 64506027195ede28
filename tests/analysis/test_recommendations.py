"""The write-ups' advice beside the records': every row from a claim, judged by the records."""

from analysis import claims, published, views
from analysis.advise import recommendations
from analysis.advise.recommendations import COLUMNS, beside


def rows(table):
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table.rows}


def test_every_recommendation_about_speed_or_memory_on_one_device_has_a_row(laptop):
    book = claims.load(published.CLAIMS)
    found = rows(beside(laptop))
    for name in book.writeups:
        view = views.view(laptop, name)
        asked = recommendations.recommendations(book, view)
        assert {one.claim for one in asked} == {key for key in found if key.startswith(f"{name}.")}
    assert not any("multi-gpu" in key for key in found)


def test_advice_follows_the_records(laptop):
    found = rows(beside(laptop))
    short = found["comprehensive.recommend.short.b1"]
    # 9 ms at 1024 tokens against 30: of LongNet's, but blocks at 98 % are faster still.
    assert short["advised"] == short["best of its kind"] == "ImprovedDilatedAttention"
    assert short["borne out"] == "of its kind"
    assert short["best dense ms"].value > short["its ms"].value > short["best ms"].value
    slow = found["dilated.recommend.speed.n2048"]
    assert slow["borne out"] == "no" and slow["its ms"].value > slow["that ms"].value
    absent = found["comprehensive.recommend.long.b1.n4096"]
    assert absent["its ms"] is None and absent["borne out"] == "not measured"


def test_only_x_will_do_is_tried_on_what_it_excludes(both):
    found = rows(beside(both, "big-gpu"))
    row = found["comprehensive.recommend.very-long.improved"]
    assert row["advised"] == "not ImprovedDilatedAttention"
    assert row["borne out"] == "no, it runs" and row["tokens"] == "16K"


def test_without_times_nothing_is_borne_out(nothing):
    assert {row["borne out"] for row in rows(beside(nothing)).values()} == {"not measured"}


def test_trial_runs_alone_give_a_table_too(smoke):
    assert "not measured" in {row["borne out"] for row in rows(beside(smoke)).values()}
