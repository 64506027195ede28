"""A campaign without a card: shares of time, marks of kernels, and rehearsals that are killed."""

import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import __main__, archive, children, cost, grid, source_tree
from experiments.campaign import build, planning, summary, trust, work
from experiments.campaign.clock import SHARES, STEPS, Clock, share
from experiments.campaign.folder import CampaignError, Folder
from experiments.case import Case
from experiments.digest import ROOT
from models import kernels
from models.kernels import withdrawn
from models.ring.call import resolve_op

SECONDS = 20.0


@pytest.fixture(autouse=True)
def nothing_withdrawn():
    yield
    withdrawn.restore()


def test_shares_leave_most_of_half_an_hour_for_measuring():
    assert share("measure", 1680) >= 1000
    for seconds in (30, 300, 1680):
        assert sum(share(step, seconds) for step in STEPS) == pytest.approx(seconds)
        assert share("measure", seconds) > 0.25 * seconds
    clock = Clock(100.0, start=time.monotonic() - 99)
    assert clock.left() == 0 and all(clock.share(step) == 0 for step in SHARES)


def test_checks_cover_every_kernel_dtype_head_size_and_direction():
    met = {(c.table, c.direction, c.case.dtype, c.case.head_dim) for c in
           trust.checks_at_real_sizes()}  # fmt: skip
    for direction in ("forward", "backward"):
        for dim in (32, 64, 128, 256):
            for table, dtypes in {
                "dilated": ("float16", "bfloat16", "float32"),
                "hop": ("float16", "bfloat16", "float32"),
                "block_sparse": ("float16", "bfloat16"),
            }.items():
                assert {(table, direction, dtype, dim) for dtype in dtypes} <= met
    patterns = {(c.case.pattern, c.case.dtype) for c in trust.checks_at_real_sizes()}
    assert {("local_window", "float16"), ("local_window", "bfloat16")} <= patterns
    for dtype, dim in itertools.product(("float16", "bfloat16"), (64, 128)):
        assert {("gluon", direction, dtype, dim) for direction in ("forward", "backward")} <= met
    assert {c.case.block_size for c in trust.checks_at_real_sizes()} == {None, 16, 32, 64, 128}


def test_checks_travel_as_json():
    checks = trust.checks_at_real_sizes()
    assert build.of_json(json.loads(json.dumps(build.to_json(checks)))) == checks
    assert [build.call_of(one).table for one in checks] == [one.table for one in checks]


needs_interpreter = pytest.mark.skipif(
    not kernels.HAS_TRITON or torch.cuda.is_available(), reason="interpreted on a CPU alone"
)


def examine(checks, each_s=SECONDS, deadline_s=60.0):
    def run_all(waiting):
        return children.run_all(
            [(trust.examine, (one.case, "cpu")) for one in waiting],
            processes=2,
            deadline=time.monotonic() + deadline_s,
            each_s=each_s,
            memory_gib=math.inf,
        )

    return {(m.table, m.direction): m for m in trust.examine_all(checks, run_all, {}, each_s)}


def of_hop():
    return [c for c in trust.checks_interpreted() if c.table == "hop" and
            c.case.dtype == "float16"]  # fmt: skip


@needs_interpreter
def test_right_kernels_pass_with_errors_below_twice_those_of_dense_attention():
    marks = examine([c for c in trust.checks_interpreted() if c.case.dtype == "float16"])
    assert {m.status for m in marks.values()} == {"ok"}, marks
    assert len(marks) == 6
    for mark in marks.values():
        assert 0 < mark.relative_rms <= 3 * mark.baseline


def wrong(forward):
    def call(self, *arguments):
        out, lse = forward(self, *arguments)
        return 1.01 * out, lse

    return call


def hanging(_):
    def call(*_):
        while True:
            time.sleep(1)

    return call


def greedy(_):
    return lambda *_: torch.empty(2**48)


def crashing(_):
    return lambda *_: os.kill(os.getpid(), signal.SIGSEGV)


def not_compiling(_):
    def call(*_):
        raise NameError("undefined_name is not defined")

    return call


@needs_interpreter
@pytest.mark.parametrize(
    ("fault", "status", "reason", "each_s"),
    [
        (wrong, "failed", "output: relative error", SECONDS),
        (hanging, "timeout", "over its limit of 3", 3.0),
        (greedy, "oom", "", SECONDS),
        (crashing, "failed", "SIGSEGV", SECONDS),
        (not_compiling, "failed", "NameError", SECONDS),
    ],
)
def test_a_bad_kernel_is_marked_and_takes_nothing_with_it(
    monkeypatch, fault, status, reason, each_s
):
    from models.kernels.hop import Triton

    monkeypatch.setattr(Triton, "forward", fault(Triton.forward))
    others = [c for c in trust.checks_interpreted() if (c.table, c.case.dtype, c.direction) ==
              ("block_sparse", "float16", "forward")]  # fmt: skip
    marks = examine([*of_hop(), *others], each_s)
    assert marks["hop", "forward"].status == status
    assert reason in marks["hop", "forward"].reason
    assert marks["hop", "backward"].status == "failed"
    assert marks["hop", "backward"].reason.startswith(f"its forward pass {status}: ")
    assert marks["block_sparse", "forward"].status == "ok"


@needs_interpreter
def test_what_the_end_of_the_step_cuts_off_is_no_fault(monkeypatch):
    from models.kernels.hop import Triton

    monkeypatch.setattr(Triton, "forward", hanging(None))
    marks = examine(of_hop(), each_s=SECONDS, deadline_s=1.0)
    assert {mark.status for mark in marks.values()} == {"not run"}
    assert not any(mark.is_bad for mark in marks.values())


def bad(table, direction="forward", dtype="float16", head_dim=64):
    return trust.Mark(table, direction, dtype, head_dim, None, "failed", "is wrong by 1 %")


def on_card(**changes):
    shape = {"batch": 1, "seq_len": 64, "heads": 2, "kv_heads": 2, "head_dim": 64}
    branches = {"segment_lengths": (64,), "dilation_rates": (1,)}
    fields = {"variant": "dilated-triton", "dtype": "float16", "is_causal": True}
    return Case(**{**shape, **branches, **fields, "pass_": "forward", **changes})


def test_a_case_that_names_a_bad_kernel_fails_with_the_reason():
    marks = [bad("dilated", "backward")]
    assert trust.why_failed(on_card(), marks) is None
    reason = trust.why_failed(on_card(pass_="forward_backward"), marks)
    assert reason == ("dilated.backward failed its check at float16, head_dim 64: is wrong by 1 %")
    # Padded to 64 too, but not float32, nor 128.
    assert trust.why_failed(on_card(head_dim=40, pass_="forward_backward"), marks) == reason
    assert trust.why_failed(on_card(head_dim=128), [bad("dilated")]) is None
    assert trust.why_failed(on_card(dtype="float32"), [bad("dilated")]) is None
    # Each of our two forwards answers for itself.
    gluon = on_card(variant="dilated-gluon")
    assert trust.why_failed(gluon, [bad("dilated")]) is None
    assert trust.why_failed(gluon, [bad("gluon")]).startswith("gluon.forward failed its check")
    assert trust.why_failed(on_card(), [bad("gluon")]) is None
    # What "auto" takes, or another backend, is measured.
    assert trust.why_failed(on_card(variant="dilated-sdpa"), [bad("dilated")]) is None


class OnCard(torch.Tensor):
    """Says that it lies on a card."""

    is_cuda = property(lambda self: True)


@needs_interpreter
def test_auto_passes_over_a_bad_kernel_and_takes_it_where_it_is_right():
    q = torch.empty(1, 64, 2, 64, dtype=torch.float16).as_subclass(OnCard)
    assert resolve_op(q, "auto").name == "triton"
    trust.withdraw([bad("hop", "backward"), replace(bad("dilated"), status="not run")])
    assert kernels.why_withdrawn("hop", "torch.float16", 40).startswith("hop.backward failed")
    assert kernels.why_withdrawn("dilated", "torch.float16", 64) is None
    assert kernels.why_withdrawn("hop", "torch.bfloat16", 64) is None
    trust.withdraw([])
    assert kernels.why_withdrawn("hop", "torch.float16", 64) is None


def test_a_folder_is_begun_once_and_taken_up_by_the_same_code_only(tmp_path):
    told = {"format": 1, "rehearsal": True, "started_at": "2026-01-02T03:04:05+00:00",
            "machine": "here", "trees": source_tree.of_sources()}  # fmt: skip
    folder = Folder.begin(tmp_path / "a", told)
    with pytest.raises(CampaignError, match="add --resume"):
        Folder.begin(tmp_path / "a", told)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(CampaignError, match="is not empty"):
        Folder.begin(tmp_path / "b", told)
    with pytest.raises(CampaignError, match="holds no campaign.json"):
        Folder.resume(tmp_path / "b", told)
    os.close(folder._lock)
    assert Folder.resume(tmp_path / "a", told).manifest == told
    for key, value in {"machine": "there", "rehearsal": False, "trees": {}}.items():
        with pytest.raises(CampaignError, match="--resume: the campaign in"):
            Folder.resume(tmp_path / "a", {**told, key: value})


def campaign(*arguments, **options):
    command = [sys.executable, "-m", "experiments", "campaign", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **({"cwd": ROOT} | options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--minutes: say how long the device is yours"),
        (["--minutes", "0"], "--minutes 0: expected at least 0.25"),
        (["--minutes", "nan"], "--minutes nan: expected at least 0.25"),
        (["--rehearse", "--device", "cuda"], "a rehearsal is on the CPU"),
        (["--rehearse", "--resume"], "--resume: name the campaign's folder by --out"),
    ],
)
def test_bad_arguments_end_before_any_work(arguments, message):
    process = campaign(*arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in errors and errors.count("\n") == 1


def unpacked(folder: Path, into: Path) -> dict[str, dict]:
    """The records in the archive of a campaign, by name; none may be refused."""
    (packed,) = folder.glob("*.tar.xz")
    assert archive.unpack(packed, into) == []
    paths = (into / "records").rglob("*.json")
    return {f"{path.parent.name}/{path.name}": json.loads(path.read_text()) for path in paths}


def rehearsal_in_a_fork(folder: Path, less: dict, *arguments: str) -> int:
    """The process of a rehearsal without the seconds of imports; less: fields of its `Work`."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        for stream, name in ((1, "printed"), (2, "errors")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w") for stream in (1, 2))
        whole = work.rehearsal()
        work.rehearsal = lambda: replace(whole, **less)
        status = __main__.main(["campaign", "--rehearse", "--minutes", "2", *arguments])
        sys.stdout.flush()
    finally:
        os._exit(status)


def digest_of(record: dict) -> str:
    return record["software"]["code_digest"]


def test_a_rehearsal_killed_five_times_goes_on_and_loses_nothing(tmp_path):
    """Killed once within each of its steps, at a random moment."""
    out, kept = tmp_path / "campaign", {}
    chance, whole = random.Random(2026), work.rehearsal()
    # Without what Triton's interpreter takes seconds for, but for some of the checks.
    quick = [one for one in whole.cases if one.case.variant != "dilated-triton"]
    first = [one for one in quick if one in whole.first]
    less = {"checks": whole.checks[:2], "tables": ("dilated",), "first": first, "cases": quick[:24]}
    # Seconds into the step after this one.
    for step, most in {"look": 2.0, "build": 1.0, "trust": 2.0, "first": 0.4, "tune": 1.0}.items():
        # One kill while it compiles is enough.
        less["compiled"] = whole.compiled[:1] if step == "look" else []
        resume = ["--resume"] if (out / "campaign.json").exists() else []
        process = rehearsal_in_a_fork(tmp_path, less, "--out", str(out), *resume)
        give_up = time.monotonic() + 60
        while not (out / "steps" / f"{step}.json").exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, most))
        ended, _ = os.waitpid(process, os.WNOHANG)
        assert not ended, (step, (tmp_path / "errors").read_text())
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert (out / "steps" / f"{step}.json").exists()
        (packed,) = out.glob("*.tar.xz")
        assert time.time() - packed.stat().st_mtime < 60
        found = unpacked(out, tmp_path / f"killed-in-{step}")
        assert set(kept) <= set(found)
        kept = found
    process = rehearsal_in_a_fork(tmp_path, less, "--out", str(out), "--resume")
    _, status = os.waitpid(process, 0)
    assert status == 0, (tmp_path / "errors").read_text()
    assert Path((tmp_path / "printed").read_text().strip()) in set(out.glob("*.tar.xz"))
    found = unpacked(out, tmp_path / "end")
    assert set(kept) <= set(found) and len(found) >= 20
    # Tiles that were tuned in between are other code.
    same = [name for name in kept if digest_of(found[name]) == digest_of(kept[name])]
    assert len(same) >= 5 and all(found[name] == kept[name] for name in same)
    wrong = {name: one for name, one in found.items() if one["status"] not in ("ok", "unsupported")}
    assert wrong == {}
    text = (tmp_path / "end" / "summary.md").read_text()
    assert re.search(rf"## {len(found)} records", text)
    assert "## Kernels: " in text or not kernels.HAS_TRITON


def test_the_summary_gives_speed_ups_over_dense_of_the_same_setting():
    def record(variant, *samples, **changes):
        fields = on_card(variant="dilated-sdpa").to_json() | changes
        if variant == "dense":
            fields |= {"segment_lengths": None, "dilation_rates": None}
        error = {"relative_rms": 3e-4, "baseline_relative_rms": 2e-4}
        return {
            "variant": variant, "case": fields, "status": "ok",
            "replicates": [{"samples_ms": [*samples]}] if samples else [], "reason": None,
            "useful_flops": 10**12, "error": {"output": error},
        }  # fmt: skip

    # The second case has three rounds of unequal numbers of samples.
    text = summary.records_table(
        [
            *(record("dense", 8.0), record("dilated-sdpa", 4.0, batch=2)),
            *(record("dilated-sdpa", *samples) for samples in ((9.0,) * 9, (2.0,), (1.0, 1.0))),
            record("dilated-sdpa", batch=3) | {"status": "oom", "reason": "a | b"},
        ]
    )
    head, *lines = text.splitlines()
    assert head == "## 6 records of 4 cases"
    rows = [[cell.strip() for cell in line.split("|")[3:-1]] for line in lines[3:]]
    assert rows == [
        ["8", "1", "125", "1.00", "1.50"],
        ["4", "1", "250", "", "1.50"],
        ["2", "3", "500", "4.00", "1.50"],
        ["oom", "", "", "", "a / b"],
    ]


def test_the_summary_names_every_experiment_that_has_the_case():
    task = next(one for one in grid.tasks("gpu") if len(one.experiments) > 1)
    one = {"variant": task.case.variant, "case": task.case.to_json(), "status": "oom"}
    text = summary.records_table([{**one, "replicates": [], "reason": "none left"}])
    assert f"| {', '.join(grid.experiments_of(task.case))} | {task.case.variant}: " in text


def test_a_plan_names_cases_seconds_and_order_within_the_time():
    chosen = work.on_device("cuda", "gpu")
    told = planning.text(chosen, "cuda", cost.reference_device("cuda"), 28)
    begins = re.findall(r"^ ?(\d+):(\d\d)  +[\d.]+ s  ", told, re.MULTILINE)
    seconds = [60 * int(minute) + int(second) for minute, second in begins]
    assert seconds == sorted(seconds) and len(seconds) > 100
    assert seconds[0] == int(sum(share(step, 1680) for step in SHARES)) and seconds[-1] < 1680
    assert f"{len(seconds)} cases; {len(chosen.cases) - len(seconds)} are left" in told
    found = planning.by_the_clock(chosen, "cuda", cost.reference_device("cuda"), 28)
    ends = list(itertools.accumulate(spent for *_, spent in found))
    before_first = sum(share(step, 1680) for step in ("look", "build", "trust"))
    assert before_first < ends[0] < before_first + 15 and ends[-1] <= 1680
    assert len(found) > len(seconds)
    # The goals come first.
    assert (found[0][0], found[0][1].variant) == ("dilated", "dilated-triton")


def test_the_first_cases_of_a_card_are_cases_of_its_tier():
    chosen = work.on_device("cuda", "gpu")
    of_tier = {one.task for one in chosen.cases}
    assert {one.task for one in chosen.first} <= of_tier
    assert len({one.case for one in chosen.first}) == len(chosen.first) == 42


def test_what_is_rehearsed_outside_the_tier_has_its_experiments_limits():
    of_tier = {task.case: task for task in grid.tasks("smoke")}
    limits = {name: grid.load(name).tiers["smoke"].limits for name in grid.names()}
    first = work.rehearsal().first
    assert sum(one.case in of_tier for one in first) < len(first) == 16
    for one in first:
        if one.case not in of_tier:
            how = ("attention", limits[one.experiment])
            assert one.task == grid.Task(one.case, (one.experiment,), *how)


# In a copy of the code: (file of models/kernels, before, after) of a kernel that is wrong, one that
# takes all memory, one that hangs, and one that does not compile.
FAULTS = (
    ("dilated.py", "    return out, lse\n", "    return 1.01 * out, lse\n"),
    # Only where it is interpreted: the build, which allocates nothing, finds no fault in it.
    (
        "hop.py",
        "        out = q.new_empty(q.shape, dtype=torch.float32)\n",
        "        out = q.new_empty(2**48 if tiles.INTERPRETED else q.shape, dtype=torch.float32)\n",
    ),
    (
        "block_sparse.py",
        "    size = next(\n",
        "    while True:\n        __import__('time').sleep(1)\n    size = next(\n",
    ),
    (
        "block_sparse_backward.py",
        "    d, d_mask = head_columns(D, BLOCK_D)\n",
        "    d, d_mask = undefined_name(D, BLOCK_D)\n",
    ),
)

# There too, in experiments/campaign/work.py: what takes a rehearsal its time and meets no other
# fault. The kernel that hangs is not compiled, which would take all that the step has.
LESS = (
    ("check_s=15.0", "check_s=8.0"),
    ('*value.ordered("smoke")]', '*value.ordered("smoke")[:8]]'),
    ('tables=("dilated", "block_sparse")', 'tables=("dilated",)'),
    (
        "if _is_usual(one)]",
        'if _is_usual(one) and (one.table, one.direction) == ("block_sparse", "backward")]',
    ),
)


@needs_interpreter
def test_a_rehearsal_with_bad_kernels_goes_on_and_says_which(tmp_path):
    for package in ("models", "experiments"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    edits = [(f"models/kernels/{name}", *texts) for name, *texts in FAULTS]
    edits += [("experiments/campaign/work.py", *texts) for texts in LESS]
    for name, before, after in edits:
        text = (tmp_path / name).read_text()
        assert before in text, name
        (tmp_path / name).write_text(text.replace(before, after, 1))
    out = tmp_path / "campaign"
    process = campaign("--rehearse", "--minutes", "2", "--out", str(out), cwd=tmp_path)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    found = unpacked(out, tmp_path / "unpacked")
    marks = json.loads((tmp_path / "unpacked" / "steps" / "trust.json").read_text())["marks"]
    told = {(m["table"], m["direction"]): (m["status"], m["reason"]) for m in marks
            if m["dtype"] == "float16"}  # fmt: skip
    assert told["dilated", "forward"][0] == "failed"
    assert told["dilated", "forward"][1].startswith("output: relative error ")
    assert told["hop", "forward"][0] == "oom"
    assert told["block_sparse", "forward"] == ("timeout", "over its limit of 8 s")
    assert told["block_sparse", "backward"][0] == "failed"
    assert told["block_sparse", "backward"][1].startswith("does not compile: ")
    assert "undefined_name" in told["block_sparse", "backward"][1]
    # Its variant has failed records with the reason; everything else went on.
    of_kernel = [one for one in found.values() if one["variant"] == "dilated-triton"]
    assert len(of_kernel) == 4
    for one in of_kernel:
        assert one["status"] == "failed" and one["replicates"] == []
        # By its mark, or where the time of the checks was up before, by the case's own check.
        known = ("dilated.forward failed its check at float32", "output: relative error ")
        assert one["reason"].startswith(known)
    others = {one["status"] for one in found.values() if one["variant"] != "dilated-triton"}
    assert others <= {"ok", "unsupported"} and len(found) > 20
    text = (tmp_path / "unpacked" / "summary.md").read_text()
    assert "- dilated.forward failed its check at float16, head_dim 32: output" in text
