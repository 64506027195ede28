"""The results page in a real browser, from a file, without network, against the frame."""

import json
from urllib.parse import quote, urlencode

import pytest

from analysis.pages import results_page
from analysis.records import frame as records
from analysis.records import systems
from analysis.rendering import style
from analysis.rendering.text import DASH, interval, number
from analysis.selection import published
from analysis.selection.rates import useful
from tests.analysis import synthetic

FORWARD = {"pass": "forward", "is_causal": False, "batch": 1}
TABLE = """
return [...document.querySelectorAll("#table tbody tr")].map((row) =>
  [row.dataset.line, ...[...row.cells].map((cell) => cell.textContent)]);
"""
FACTS = """
const texts = (tag) => [...document.querySelectorAll(`#facts ${tag}`)].map((e) => e.textContent);
return [texts("dt"), texts("dd")];
"""


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Two machines and two passes, block masks, ranks, points out of memory and out of time."""
    root = tmp_path_factory.mktemp("results") / "published"
    synthetic.write(root, "comprehensive", failed={("dilated-gather", 8192): "timeout"})
    synthetic.write(root, "block_sparse")
    synthetic.write(root, "backends", failed={("dense-cudnn", 2048): "unsupported"})
    synthetic.write(root, "dilated")
    synthetic.write(root, "dilated", "gpu", {("dilated-gather", 131072): "oom"})
    return results_page.with_lines(records.load(root))


@pytest.fixture(scope="module")
def address(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "results.html"
    path.write_text(results_page.page(frame.drop(columns=["line", "pattern_words"])))
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    """The page, freshly opened 1280 wide; its console and its requests are looked at afterwards."""
    browser.resize(1280, 900)
    browser.open("about:blank")
    browser.logs("browser")
    browser.requests()
    browser.open(address)
    yield browser
    assert browser.logs("browser") == []
    outside = [url for url in browser.requests() if not url.startswith(("file://", "data:"))]
    assert outside == [] or set(outside) == {"about:blank"}


def select(page, name, value):
    """Choose in a select as a reader would."""
    page.run(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "if (e.value !== arguments[1]) throw new Error(`no option ${arguments[1]}`);"
        "e.dispatchEvent(new Event('change'));",
        name,
        str(value),
    )


def open_forward(page, experiment):
    """Choose the forward pass of one sequence without a mask on the CPU."""
    select(page, "machine", synthetic.CPU)
    select(page, "experiment", experiment)
    select(page, "pass", "forward")
    select(page, "is_causal", "not causal")
    select(page, "batch", 1)


def tick(page, group, value):
    """Click the checkbox of a value."""
    page.run(
        "[...document.querySelectorAll(`#${arguments[0]} input`)]"
        ".find((box) => box.value === arguments[1]).click();",
        group,
        value,
    )


def text(page, selector):
    return page.run("return document.querySelector(arguments[0]).textContent;", selector)


def shown_rows(page):
    return {row[0]: row[2:] for row in page.run(TABLE)}


def of(frame, **fixed):
    for column, value in fixed.items():
        frame = frame[frame[column] == value]
    return frame


def expected(row):
    """The cells of a record's row, as tables of ours have them."""
    rate = useful(row)
    # A card's in TFLOP/s, a CPU's in GFLOP/s, however little a record does.
    size = 1e12 if row["device_kind"] == "cuda" else 1e9
    return [
        interval(row["median_ms"], row["low_ms"], row["high_ms"]),
        number(row["peak_memory_bytes"] / 2**20),
        interval(*(v / size for v in (rate.value, rate.low, rate.high))),
        number(row["relative_rms"] / row["baseline_relative_rms"]),
        f"{number(100 * row['realised_density'])} %",
    ]


def check_table(page, rows):
    """Every row of the table is that of its record, and there is none but of `rows`."""
    shown = shown_rows(page)
    assert set(shown) == set(rows["line"])
    for _, row in rows.iterrows():
        if row["status"] == "ok":
            assert shown[row["line"]] == expected(row)
        else:
            word = {"oom": "out of memory", "timeout": "out of time"}.get(row["status"])
            assert shown[row["line"]] == [f"{word or row['status']}: {row['reason']}"]


def test_it_opens_on_the_speaking_machine_with_the_numbers_of_its_records(page, frame):
    state = page.run("return Object.fromEntries(SETTING.map((name) => [name, state[name]]));")
    assert state["machine"] == records.reporting_machine(frame)
    length = page.run("return state.length;")
    asked = {**state, "is_causal": state["is_causal"] == "causal", "batch": int(state["batch"])}
    heads, size = asked.pop("heads").split(" of ")
    rows = of(frame, **asked, heads=int(heads), head_dim=int(size), seq_len=length)
    assert len(rows) > 3
    check_table(page, rows)


def test_choosing_changes_the_numbers_to_those_of_the_records(page, frame):
    select(page, "machine", synthetic.CPU)
    select(page, "experiment", "block_sparse")
    own = of(frame, machine=synthetic.CPU, experiment="block_sparse", is_causal=False)
    own = of(own, batch=1)
    for pass_, length in (("forward", 4096), ("forward", 16384), ("forward_backward", 2048)):
        select(page, "pass", pass_)
        select(page, "is_causal", "not causal")
        select(page, "batch", 1)
        select(page, "length", length)
        check_table(page, of(own, **{"pass": pass_}, seq_len=length))
    open_forward(page, "comprehensive")
    select(page, "length", 8192)
    rows = of(frame, machine=synthetic.CPU, experiment="comprehensive", **FORWARD)
    check_table(page, of(rows, seq_len=8192))


def test_types_and_heads_can_be_chosen_where_there_are_several(page, frame):
    select(page, "machine", synthetic.CPU)
    select(page, "experiment", "backends")
    select(page, "dtype", "bfloat16")
    assert "dense-flash" in shown_rows(page)
    rows = of(frame, machine=synthetic.CPU, experiment="backends", dtype="bfloat16", seq_len=2048)
    check_table(page, rows)
    select(page, "dtype", "float32")
    select(page, "heads", "8 of 128")
    rows = of(frame, machine=synthetic.CPU, experiment="backends", dtype="float32", head_dim=128)
    check_table(page, rows)


def test_sparsities_and_systems_can_be_taken_away_and_brought_back(page):
    open_forward(page, "block_sparse")
    select(page, "length", 4096)
    everything = set(shown_rows(page))
    tick(page, "sparsities", "90")
    assert set(shown_rows(page)) == everything - {"block-sparse@90"}
    tick(page, "lines", "dense")
    assert set(shown_rows(page)) == everything - {"block-sparse@90", "dense"}
    drawn = page.run("return [...new Set([...document.querySelectorAll('#chart .point')]"
                     ".map((p) => p.dataset.line))];")  # fmt: skip
    assert not {"dense", "block-sparse@90"} & set(drawn) and "block-sparse@98" in drawn
    page.run("document.getElementById('all').click();")
    assert set(shown_rows(page)) == everything


def test_a_system_with_several_patterns_at_a_length_is_a_line_for_each(page, frame):
    open_forward(page, "block_sparse")
    patterns = of(frame, experiment="block_sparse", system="block-sparse@95", seq_len=8192)
    patterns = of(patterns, **FORWARD)
    assert len(patterns) > 1
    select(page, "length", 8192)
    shown = shown_rows(page)
    for _, row in patterns.iterrows():
        words = f"{row['pattern'].replace('_', ' ')} blocks of {row['block_size']:.0f}"
        assert row["line"] == f"block-sparse@95, {words}"
        assert shown[row["line"]] == expected(row)


def test_a_chosen_point_shows_the_samples_path_and_command_of_its_record(page, frame):
    open_forward(page, "comprehensive")
    select(page, "length", 2048)
    page.run("document.querySelector('#table tr[data-line=dilated-sdpa] button').click();")
    row = of(frame, machine=synthetic.CPU, experiment="comprehensive", seq_len=2048, batch=1)
    row = of(row, system="dilated-sdpa").iloc[0]
    dots = page.run(
        "return [...document.querySelectorAll('#strip .sample')]"
        ".map((dot) => [Number(dot.dataset.round), Number(dot.dataset.ms)]);"
    )
    assert dots == [
        [place, float(f"{t:.6g}")]
        for place, one in enumerate(row["samples"], start=1)
        for t in one.all
    ]
    listed = page.run(
        "return [...document.querySelectorAll('#samples [data-round]')]"
        ".map((p) => p.textContent.split(': ')[1].split(', ').map(Number));"
    )
    assert listed == [[float(f"{t:.6g}") for t in one.all] for one in row["samples"]]
    names = page.run(
        "return [...document.querySelectorAll('#samples [data-round]')]"
        ".map((p) => p.textContent.split(': ')[0]);"
    )
    assert names == [one.round for one in row["samples"]]
    assert text(page, "#path") == row["path"] and text(page, "#command") == row["command"]
    assert page.run("return document.getElementById('path').getAttribute('href');") == (
        f"../{quote(row['path'])}"
    )
    names, values = page.run(FACTS)
    facts = dict(zip(names, values, strict=True))
    time = interval(row["median_ms"], row["low_ms"], row["high_ms"])
    assert facts["Median time"] == f"{time} ms"
    assert facts["Backend"] == row["backend"]
    assert facts["Error against the oracle"].startswith(number(row["relative_rms"]))
    page.run("document.querySelector('[data-copies=command]').click();")
    copied = page.run("return new Promise((done) => setTimeout(() =>"
                    "done([document.getElementById('announced').textContent,"
                    "getSelection().toString()]), 200));")  # fmt: skip
    assert copied[0] == "Copied" or copied[1] == row["command"]


def test_an_untimed_point_is_drawn_and_says_why(page, frame):
    open_forward(page, "comprehensive")
    page.run(
        "const of = (p) => p.dataset.line === 'dilated-gather' && p.dataset.length === '8192';"
        "[...document.querySelectorAll('#chart .point')].find(of)"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}));"
    )
    assert text(page, "#record-title") == "DilatedAttention, 8,192 tokens: out of time"
    names, values = page.run(FACTS)
    assert dict(zip(names, values, strict=True))["Reason"] == "timeout on purpose"
    assert page.run("return document.getElementById('strip').hidden;")
    rows = of(frame, experiment="comprehensive", seq_len=8192, system="dilated-gather", batch=1)
    assert text(page, "#path") == rows.iloc[0]["path"]


@pytest.mark.parametrize("quantity", ["time", "memory", "rate", "error"])
def test_a_point_is_drawn_for_every_record_and_says_its_value(page, frame, quantity):
    open_forward(page, "comprehensive")
    select(page, "show", quantity)
    points = page.run(
        "return [...document.querySelectorAll('#chart .point')].map((p) =>"
        "[p.dataset.line, Number(p.dataset.length), p.getAttribute('aria-label')]);"
    )
    rows = of(frame, machine=synthetic.CPU, experiment="comprehensive", **FORWARD)
    assert sorted(p[:2] for p in points) == sorted(map(list, zip(rows["system"], rows["seq_len"])))  # noqa: B905
    stated = {(line, length): words.partition(": ")[2] for line, length, words in points}
    for _, row in of(rows, status="ok").iterrows():
        shown = stated[row["system"], row["seq_len"]]
        cells = expected(row)
        if quantity == "error":
            assert float(shown) == pytest.approx(row["relative_rms"], rel=0.01)
        else:
            place, unit = {"time": (0, "ms"), "memory": (1, "MiB"), "rate": (2, "GFLOP/s")}[
                quantity
            ]
            assert shown == f"{cells[place]} {unit}"


def test_published_figures_stand_over_the_measured_ones_at_their_batch(page):
    open_forward(page, "comprehensive")
    marks = (
        "return [...document.querySelectorAll('#chart .published')].map((p) =>"
        "[p.dataset.system, Number(p.dataset.length), p.getAttribute('aria-label')]);"
    )
    for batch in (1, 4):
        select(page, "batch", batch)
        shown = {(system, n): words for system, n, words in page.run(marks)}
        times = {
            (system, n): published.value("comprehensive", system, batch, n, "time")
            for system, n in shown
        }
        assert len(shown) == 3 * 6 and all(times.values())
        for key, words in shown.items():
            assert words.endswith(f"published: {number(times[key])} ms, GTX 1080, float32")
    select(page, "batch", 1)
    select(page, "length", 8192)
    page.run("document.querySelector('#table tr[data-line=dilated-sdpa] button').click();")
    names, values = page.run(FACTS)
    old = number(published.value("comprehensive", "dilated-sdpa", 1, 8192, "time"))
    facts = dict(zip(names, values, strict=True))
    assert facts["Published (GTX 1080, float32)"].startswith(f"{old} ms")
    # What the write-up prints is of its own pattern, and of no other.
    others = "return RECORDS.filter((r) => !r.as_published).flatMap(printedOf).length;"
    assert page.run(others) == 0
    tick(page, "lines", "dilated-sdpa")
    assert "dilated-sdpa" not in {system for system, *_ in page.run(marks)}
    select(page, "show", "error")
    assert page.run(marks) == []


def test_two_machines_stand_side_by_side_on_one_scale(page):
    for name, value in {
        "machine": synthetic.GPU, "experiment": "dilated", "pass": "forward", "dtype": "float16",
        "is_causal": "causal", "heads": "12 of 64", "batch": 1, "beside": synthetic.CPU,
    }.items():  # fmt: skip
        select(page, name, value)
    titles = "return [...document.querySelectorAll('#chart h3')].map((h) => h.textContent);"
    heads = page.run(titles)
    # The CPU has no float16: its own type stands in, and is said.
    dtypes = {head.split(" (")[0]: head.rpartition(", ")[2] for head in heads}
    assert dtypes == {synthetic.CPU_NAME: "float32", "A Big GPU": "float16"}
    machines = page.run(
        "return [...document.querySelectorAll('#chart svg')].map((svg) =>"
        "[...new Set([...svg.querySelectorAll('.point')].map((p) => p.dataset.machine))]);"
    )
    assert sorted(machines) == [[synthetic.GPU], [synthetic.CPU]]
    ticks = page.run(
        "return [...document.querySelectorAll('#chart svg')].map((svg) =>"
        "[...svg.querySelectorAll('text[text-anchor=end]')].map((t) => t.textContent)"
        ".filter((text) => text !== 'none'));"
    )
    assert ticks[0] and ticks[0] == ticks[1]
    select(page, "show", "rate")
    # One unit for both, the larger: a point stands where its label says.
    rates = page.run(
        "return [...document.querySelectorAll('#chart .point')].map((p) =>"
        "[p.dataset.machine, p.getAttribute('aria-label')])"
        ".filter(([machine, words]) => words.includes('FLOP/s'));"
    )
    assert {machine for machine, _ in rates} == {synthetic.GPU, synthetic.CPU}
    assert all(words.endswith(" TFLOP/s") for _, words in rates)
    assert text(page, "#chart-title") == "Useful work, TFLOP/s"
    select(page, "show", "time")
    assert f"beside={synthetic.CPU}" in page.run("return location.hash;")
    # A point of the other machine is chosen where it stands.
    page.run(
        "document.querySelector(`#chart .point[data-machine='${arguments[0]}']`)"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}));",
        synthetic.CPU,
    )
    state = "return [state.machine, state.beside, state.dtype];"
    assert page.run(state) == [synthetic.CPU, synthetic.GPU, "float32"]
    assert page.run(titles) == heads
    # No machine stands beside itself.
    select(page, "machine", synthetic.GPU)
    assert page.run("return state.beside;") == ""


def test_both_axes_are_logarithmic_and_the_colours_are_those_of_the_figures(page):
    open_forward(page, "comprehensive")
    places = page.run(
        "return [...document.querySelectorAll(\"#chart .point[data-line='dense']\")].map((p) =>"
        "[Number(p.dataset.length), Number(p.dataset.x)]);"
    )
    steps = [b[1] - a[1] for a, b in zip(places, places[1:], strict=False)]
    assert len(steps) == 4 and max(steps) == pytest.approx(min(steps), rel=1e-6)
    found = page.run("return Object.fromEntries(Object.entries(DATA.looks).map(([k, v]) =>"
                     "[k, [v.label, v.color]]));")  # fmt: skip
    looks = {system: style.look(system) for system in found}
    assert found == {system: [one.label, one.color] for system, one in looks.items()}
    assert page.run("return Object.keys(DATA.looks);") == systems.ordered(found)


def test_the_keyboard_moves_from_point_to_point(page):
    open_forward(page, "comprehensive")
    select(page, "length", 2048)
    page.run("document.querySelector('#chart [aria-pressed=true]').focus();")
    chosen = "return [state.line, state.length, document.activeElement.dataset.line];"
    line = page.run(chosen)[0]
    page.press("#chart [aria-pressed=true]", "\ue014")  # right
    assert page.run(chosen) == [line, 4096, line]
    page.press("#chart [aria-pressed=true]", "\ue012")  # left
    assert page.run(chosen) == [line, 2048, line]
    page.press("#chart [aria-pressed=true]", "\ue015")  # down
    lower, length, focused = page.run(chosen)
    assert length == 2048 and lower != line and focused == lower
    order = page.run(
        "return [arguments[0], arguments[1]].map((line) => Number(document.querySelector("
        "`#chart .point[data-line='${line}'][data-length='2048']`).dataset.y));",
        line,
        lower,
    )
    assert order[1] >= order[0]
    page.press("#chart [aria-pressed=true]", "\ue013")  # up
    assert page.run(chosen)[0] == line
    assert page.run("return document.querySelectorAll('#chart [tabindex=\"0\"]').length;") == 1


def test_a_link_brings_back_the_view(page, address):
    open_forward(page, "block_sparse")
    select(page, "show", "memory")
    select(page, "length", 4096)
    tick(page, "sparsities", "95")
    tick(page, "lines", "block-sparse@98")
    page.run("document.querySelector('#table tr[data-line=\"block-sparse@90\"] button').click();")
    look = (
        "return [location.hash, document.getElementById('record-title').textContent,"
        "document.getElementById('chart').innerHTML, document.getElementById('table').innerHTML];"
    )
    before = page.run(look)
    page.open("about:blank")
    page.open(address + before[0])
    assert page.run(look) == before
    assert "block-sparse@90" in shown_rows(page) and "block-sparse@98" not in shown_rows(page)


def test_a_link_with_nonsense_shows_what_there_is(page, address):
    page.open("about:blank")
    page.open(address + "#" + urlencode({"machine": "none", "length": "x", "line": "gone"}))
    assert shown_rows(page) and page.run("return state.machine;") != "none"
    assert text(page, "#record-title").endswith("ms")


def test_a_changed_hash_changes_the_view(page):
    where = {"machine": synthetic.CPU, "experiment": "comprehensive", "length": 1024}
    where |= {"pass": "forward", "is_causal": "not causal", "batch": 1}
    page.run("location.hash = arguments[0];", urlencode(where))
    wait = "return new Promise((done) => setTimeout(() => done(state.length), 100));"
    assert page.run(wait) == 1024
    assert page.run("return document.getElementById('length').value;") == "1024"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("experiment", ["comprehensive", "block_sparse", "backends"])
def test_it_fits_its_window(page, width, experiment):
    page.resize(width, 900)
    select(page, "machine", synthetic.CPU)
    select(page, "experiment", experiment)
    page.run("drawAll();")
    wide = page.run("return document.documentElement.scrollWidth;")
    assert wide <= width
    outside = page.run(
        "return [...document.querySelectorAll('svg text')].filter((t) => {"
        "const b = t.getBoundingClientRect();"
        "return b.width && (b.left < -1 || b.right > innerWidth + 1);"
        "}).map((t) => t.textContent);"
    )
    assert outside == []


def test_numbers_read_as_in_the_tables(page):
    values = [0, 1, 12, 1234, 999999, 1e6, 2.5e7, 0.5, 0.0123, 0.00099, 1.005, 99.95, 123.4, 1234.5]
    values += [21.05, 0.125, 2.5, 35.25, 0.0625]
    assert page.run("return arguments[0].map(number);", values) == [number(v) for v in values]
    triples = [[1.87, 1.8, 1.95], [123.4, 120, 130], [0.0123, 0.01, 0.02], [10, 0.1, 4000]]
    shown = page.run("return arguments[0].map(([v, ...ends]) => interval(v, ends));", triples)
    assert shown == [interval(*triple) for triple in triples]
    assert page.run("return [number(null), interval(null, null)];") == [DASH, DASH]


def test_a_machine_that_timed_nothing_says_why(browser, frame, tmp_path):
    rows = frame.drop(columns=["line", "pattern_words"])
    path = tmp_path / "results.html"
    path.write_text(results_page.page(rows[rows["status"] != "ok"]))
    browser.logs("browser")
    browser.open(path.as_uri())
    assert browser.logs("browser") == []
    for cells in shown_rows(browser).values():
        assert cells[0].endswith("on purpose")


def test_the_data_cannot_end_its_element(browser, frame, tmp_path):
    rows = frame.drop(columns=["line", "pattern_words"])
    reason = '</script><script>alert("x")</script><!-- <script>'
    rows.loc[rows["status"] != "ok", "reason"] = reason
    path = tmp_path / "results.html"
    path.write_text(results_page.page(rows))
    browser.open(path.as_uri())
    found = browser.run("return RECORDS.filter((r) => r.status !== 'ok').map((r) => r.reason);")
    assert found and set(found) == {reason}
    assert json.loads(browser.run("return JSON.stringify(DATA.setting);")) == results_page.SETTING


def test_the_rate_of_one_round_has_no_interval(page):
    found = page.run(
        "const record = { machine: state.machine, rate: 2.5e12, rate_low: null, rate_high: null };"
        "return [rateOf(record).ends, rateWords(record)];"
    )
    assert found == [[None, None], "2.50 TFLOP/s"]
