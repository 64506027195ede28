"""The command line: bad input in one line before any work, and no more packages than promised."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments import __main__, runner
from experiments import grid as grids
from experiments.campaign import value
from experiments.cards import Gpu
from experiments.cost import hours
from experiments.procedures import attention

ROOT = Path(__file__).parents[2]


def cli(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "dilate"), "error: experiment 'dilate': no dilate.yaml; there are"),
        (("run", "../x"), "error: experiment '../x': no such name; there are as_published"),
        (("run", "a\nb"), "error: experiment 'a\\nb': no such name; there are as_published"),
        (("run", "", "--all"), "error: argument NAME: is empty"),
        (("run", "dilated", "--case", ""), "error: argument --case: is empty"),
        (("run", "dilated", "--out", ""), "error: argument --out: is empty"),
        (("plan", "dilated", "--out", "Makefile"), "--out: Makefile: is a file, expected a folder"),
        (("run", "dilated", "--round", "x"), "--round: x: expected an integer >= 1"),
        (("validate", ""), "error: argument PATH: is empty"),
        (("campaign", "--minutes", "3", "--out", ""), "error: argument --out: is empty"),
        (("run",), "error: give the name of one experiment, --all, or one --case"),
        (("run", "dilated", "--all"), "error: give the name of one experiment, --all, or one --ca"),
        (("run", "--case", "dense_b1", "--tier", "smoke"), "all experiments (smoke): no case"),
        (("run", "dilated", "--round", "0"), "--round: 0: expected an integer >= 1"),
        (("run", "dilated", "--rounds", "2", "--round", "1"), "error: --rounds: expected alone"),
        (("run", "dilated", "--rounds", "2", "--budget", "9"), "error: --rounds: expected alone"),
        (("run", "dilated", "--only", "n=3"), "error: --only n=3: expected k=v"),
        (("run", "dilated", "--only", "seq_len=3"), "error: dilated (quick): no case matches"),
        (("run", "dilated", "--device", "tpu"), "error: --device tpu: not here; there is cpu"),
        (("run", "dilated", "--tier", "huge"), "invalid choice: 'huge'"),
        (("run", "dilated", "--budget", "-1"), "expected a positive number of seconds"),
        (("run", "dilated", "--tier", "smoke", "--out", "Makefile/x"), "cannot write there"),
        (("validate", "nowhere"), "error: nowhere: no such file or folder"),
        (("publish", "paper"), "error: paper: no records"),
        (("tune",), "error: tune: needs a CUDA GPU; there is only the CPU"),
        (("tune", "dilated", "--device", "cpu"), "error: tune: needs a CUDA GPU"),
        (("tune", "--minutes", "0"), "expected a positive number"),
        (("tune", "--device", "cuda:7"), "error: --device cuda:7: not here; there is cpu"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, told):
    done = cli(*arguments)
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr


def test_list_and_plan_tell_the_cases():
    listed = cli("list").stdout
    assert "comprehensive" in listed and "smoke 16, laptop 84, gpu 540" in listed
    planned = cli("plan", "comprehensive", "--tier", "gpu", "--device", "cpu").stdout
    assert planned.count("\n  measure ") + planned.count("\n  done ") == 540


def test_plan_tells_device_hours_of_the_rounds_that_are_asked_for(put, capsys, tmp_path):
    """On two cards, that are not there: their hours, and beside these the time on both."""
    cards = [Gpu(str(i), f"GPU-{i}", "NVIDIA H100", "580", 80 * 2**30) for i in range(2)]
    put(*cards)
    asked = ["plan", "--all", "--tier", "gpu", "--out", str(tmp_path), "--device"]
    told = []
    for device in ("cuda", "cuda:1"):
        assert __main__.main([*asked, device, "--rounds", "2"]) == 0
        told.append(capsys.readouterr().out)
    both, one = (
        [float(x) for x in re.search(r"about (\S+) dev\S+; 2 rounds (\S+) dev", text).groups()]
        for text in told
    )
    tasks = grids.tasks("gpu")
    device_s = sum(hours.expected_s(task, "cuda", "NVIDIA H100", 2) for task in tasks)
    assert both == pytest.approx([device_s / 3600, 2 * device_s / 3600], rel=5e-3)
    # Rings over two cards run on two alone, and count twice.
    assert one[0] < both[0] and one[1] == pytest.approx(2 * one[0], rel=5e-3)
    (whole,) = re.findall(r"  on 2 cards about (\d+) h (\d+) min", told[0])
    wall = int(whole[0]) + int(whole[1]) / 60
    # Hours are told in three digits.
    assert 0.994 * both[1] / 2 < wall + 1 / 60 and wall < 1.1 * both[1] / 2
    rows = told[0].splitlines()
    last = next(place for place, row in enumerate(rows) if row.startswith("all  "))
    assert rows[last].endswith(f" {len(tasks)} cases, {both[0]:g} device-hours")
    assert rows[last + 1].startswith("  on 2 cards  ") and "on 2 cards" not in told[1]


def test_a_budget_takes_the_most_valuable_first(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(__main__.runner, "run", lambda tasks, *_, **__: asked.append(tasks) or [])
    monkeypatch.setattr(__main__.runner, "failures", lambda *_: [])
    for tier, budget in (("gpu", ("--budget", "5")), ("gpu", ()), ("smoke", ("--rounds", "2"))):
        given = ("--all", "--tier", tier, "--device", "cpu", "--out", str(tmp_path), *budget)
        assert __main__.main(["run", *given]) == 0
    by_value = [one.task for one in value.ordered("gpu")]
    assert asked == [by_value, grids.tasks("gpu"), *2 * [grids.tasks("smoke")]]
    assert asked[0] != asked[1]
    first, last = capsys.readouterr().err.splitlines()[-2:]
    minutes, seconds, in_all = re.fullmatch(
        rf"{len(asked[-1])} cases \(smoke\), expected to take (?:(\d+) min )?(\d+) s per round, "
        r"(0\.\d+) device-hours where none is measured yet",
        first,
    ).groups()
    per_round = 60 * int(minutes or 0) + int(seconds)
    assert float(in_all) == pytest.approx(2 * per_round / 3600, rel=0.02)
    assert last == "measured nothing: all records were there"


@pytest.mark.parametrize("command", ["list", "plan ring --tier smoke --device cpu"])
def test_whoever_reads_may_go_before_the_end(command):
    # Gone before the first line: `head` may go before or after all of a short text is written.
    read, write = os.pipe()
    os.close(read)
    asked = [sys.executable, "-m", "experiments", *command.split()]
    done = subprocess.run(asked, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    script = f"{' '.join(asked)} | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_what_cannot_be_printed_is_an_error_without_a_traceback():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "experiments", "list"], stdout=full, stderr=-1, cwd=ROOT
        )
    assert done.returncode in (1, 2)
    assert b"No space left on device" in done.stderr and b"Traceback" not in done.stderr


ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_without_the_characters_of_a_text_prints_escapes(tmp_path):
    """Of the findings a dash."""
    command = [sys.executable, "-m", "analysis.findings", "--out", str(tmp_path / "found")]
    done = subprocess.run([*command, "results/published"], capture_output=True, cwd=ROOT, env=ASCII)
    assert done.returncode == 0, done.stderr
    assert b"\\u2013" in done.stdout and "\u2013" in (tmp_path / "found.md").read_text("utf-8")


def test_tune_holds_a_gpu_while_it_measures(monkeypatch, capsys, tmp_path):
    from experiments.tuning import clocks, tune

    told = []

    def tuned(entries, **options):
        told.append(({entry.table for entry in entries}, options))

    monkeypatch.setattr(tune, "tune", tuned)
    monkeypatch.setattr(clocks, "card_at_hand", lambda: (90, "a card"))
    monkeypatch.setattr(__main__.machine, "choose_device", lambda asked: asked or "cuda")

    @contextmanager
    def hold(device):
        told.append(f"hold {device}")
        yield f"{device}:0"
        told.append("free")

    monkeypatch.setattr(__main__, "hold", hold)
    clock = {"clock": clocks.OnCard("a card"), "capability": 90}
    options = {"folder": ROOT / "models/kernels", "seconds": float("inf"), **clock}
    assert __main__.main(["tune"]) == 0
    assert told == ["hold cuda", ({"dilated", "block_sparse", "hop"}, options), "free"]
    told.clear()
    given = ["--device", "cuda:1", "--minutes", "2.5", "--out", str(tmp_path)]
    assert __main__.main(["tune", "block_sparse", *given]) == 0
    options = {"folder": tmp_path, "seconds": 150.0, **clock}
    assert told == ["hold cuda:1", ({"block_sparse"}, options), "free"]
    assert __main__.main(["tune", "sparse"]) == 2
    assert "error: TABLE='sparse': expected one of dilated, block_sparse" in capsys.readouterr().err


BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from experiments.__main__ import main
sys.exit(main(["run", "dilated", "--tier", "smoke", "--only", "seq_len=128",
               "--only", "variant=dilated-sdpa", "--out", sys.argv[1]]))
"""


def test_run_needs_torch_and_numpy_only(tmp_path):
    blocked = {"pydantic", "snakemake", "pandas", "yaml", "scipy", "matplotlib", "pytest"}
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(blocked=blocked), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert cli("validate", tmp_path).stdout == "2 records valid, 0 not\n"


def test_several_rounds_are_measured_and_the_time_left_is_of_all(tmp_path):
    asked = ("run", "dilated", "--tier", "smoke", "--only", "seq_len=128", "--only", "pass=forward")
    done = cli(*asked, "--rounds", "2", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    folders = [path.parent.name for path in sorted(tmp_path.rglob("*.json"))]
    assert folders == ["round-1"] * 3 + ["round-2"] * 3
    places = re.findall(r"\[(round-\d, \d/\d), about (\d+) s left\]", done.stderr)
    assert [place for place, _ in places] == [
        f"round-{r}, {n}/3" for r in (1, 2) for n in (1, 2, 3)
    ]
    # The first line counts the second round, by what is expected, as the first of that does not.
    of_round = int(re.search(r"expected to take (\d+) s per round", done.stderr)[1])
    assert abs(int(places[0][1]) - 2 * of_round) <= 1


def test_a_killed_run_leaves_whole_records_no_children_and_resumes(tmp_path):
    command = [sys.executable, "-m", "experiments", "run", "dilated", "--tier", "smoke"]
    command += ["--only", "pass=forward", "--out", str(tmp_path)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not list(tmp_path.rglob("*.json")):
        assert run.poll() is None
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    done = len(list(tmp_path.rglob("*.json")))
    assert cli("validate", tmp_path).stdout == f"{done} records valid, 0 not\n"
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert again.returncode == 0
    assert f"{6 - done} cases to measure, {done} kept" in again.stderr
    assert len(list(tmp_path.rglob("*.json"))) == 6


ASKED = ("run", "dilated", "--tier", "smoke", "--only", "seq_len=128", "--only", "pass=forward")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path, name):
    command = ["run", "dilated", "--tier", "smoke", "--out", str(tmp_path / "records")]
    (tmp_path / "temporary").mkdir()
    run = subprocess.Popen(
        [sys.executable, "-m", "experiments", *command],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        # Begun by a shell in the background it would ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    while "1/" not in run.stderr.readline():
        assert run.poll() is None
    number = getattr(signal, name)
    run.send_signal(number)
    told = run.stderr.read()
    assert run.wait(20) == 128 + number and "Traceback" not in told
    assert told.splitlines()[-1] == (
        f"stopped by {name}: what was measured is kept; to go on: "
        f"python -m experiments {' '.join(command)}"
    )
    assert [*(tmp_path / "temporary").rglob("case-*")] == []


def test_failed_cases_are_told_last_and_by_the_exit_status(monkeypatch, tmp_path, capsys, no_lock):
    monkeypatch.setattr(attention, "replicate", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert __main__.main([*ASKED, "--rounds", "2", "--out", str(tmp_path)]) == 3
    *_, first, last = capsys.readouterr().err.splitlines()
    assert last == "6 of 6 cases failed; the same command measures them again"
    assert first.startswith("round-2, ")
    assert first.endswith(": failed: its process was killed by SIGKILL")


def test_a_limit_of_address_space_fails_no_case(tmp_path):
    gib = 2**30

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (4 * gib, 4 * gib))

    done = cli(*ASKED, "--out", tmp_path, preexec_fn=limited)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("*.json")]
    assert found == ["ok"] * 3


def test_where_nothing_can_be_written_nothing_is_begun(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner.tempfile, "TemporaryFile", full)
    assert __main__.main([*ASKED, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: {tmp_path}/out") and told.endswith("write there: disk full")
    assert [*tmp_path.rglob("*.json")] == []
