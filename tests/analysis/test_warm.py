"""A warm process has read the records as they are now, once, and answers as a cold one does."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from analysis import warm
from analysis.records import files, frame
from experiments import gate, trusted
from tests.analysis import synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    """Published records of one experiment, vouched for."""
    root = tmp_path / "results" / "published"
    synthetic.write(root, "dilated", "laptop", None)
    rounds = {path.parent.relative_to(root).parts for path in root.rglob("*.json")}
    trusted.add(root, sorted(rounds), "nobody real")
    return root


@pytest.fixture
def admitted(monkeypatch):
    """The records that the gate has looked at. Nothing stays kept, nor frozen."""
    found, admit = [], gate.admit

    def counting(path, root):
        found.append(path)
        return admit(path, root)

    monkeypatch.setattr(gate, "admit", counting)
    monkeypatch.setattr(warm, "_TICK_S", 0.05)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(files, "kept", {})
    monkeypatch.setattr(frame, "kept", None)
    return found


def looked(root) -> warm.Records:
    """Records that are read and kept."""
    made = warm.Records([root])
    made.look()
    assert len(files.kept) == 1
    return made


def test_what_is_kept_is_read_once_whoever_asks(root, admitted):
    records, count = looked(root), len(list(root.rglob("*.json")))
    for _ in range(3):
        records.look()
        assert len(files.read(root)) == count
        assert frame.load(root) is frame.of_files(files.read(root)) is frame.kept[1]
    assert len(admitted) == count > 40
    # Others are none of these.
    path = next(root.rglob("*.json"))
    assert len(files.read(path)) == 1 and len(admitted) == count + 1
    assert len(frame.of_files(files.read(path))) < len(frame.kept[1])


def test_it_is_what_a_process_reads_for_itself(root, admitted):
    own, rows = files.sifted(root), frame.load(root)
    looked(root)
    kept = files.sifted(root)
    assert [one.path for one in kept[0]] == [one.path for one in own[0]] and kept[1] == own[1]
    pd.testing.assert_frame_equal(frame.load(root), rows)


def slower(text: str) -> str:
    """The same record, as long, with one digit changed."""
    record = json.loads(text)
    old = str(record["replicates"][0]["samples_ms"][0])
    return text.replace(old, old[:-1] + ("1" if old[-1] != "1" else "2"), 1)


def test_a_record_that_changes_is_read_anew_though_its_size_and_time_stay(root, admitted):
    records = looked(root)
    path = next(one for one in root.rglob("*.json") if '"ok"' in one.read_text())
    before = path.stat()
    path.write_text(slower(path.read_text()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    records.look()
    # Nobody vouches for that round any more.
    assert len(admitted) == 2 * len(files.read(root))
    assert not all(one.is_vouched for one in files.read(root))


@pytest.mark.parametrize("change", ["added", "removed", "no longer vouched for"])
def test_what_is_added_removed_or_vouched_for_is_seen(root, admitted, change):
    records, (path, *others) = looked(root), sorted(root.rglob("*.json"))
    if change == "added":
        path.with_name("bad.json").write_text("{")
    elif change == "removed":
        path.unlink()
    else:
        (root / trusted.NAME).write_text("")
    records.look()
    found, left_out = files.sifted(root)
    assert len(found) == len(others) + (change != "removed")
    assert len(left_out) == (change == "added")
    # Of a round that is not as it was when somebody vouched for it, neither.
    assert [one.file for one in found if one.is_vouched and one.round == path.parent.name] == []


def test_roots_that_cannot_be_read_are_left_to_the_command(root, admitted):
    records = looked(root)
    shutil.rmtree(root)
    records.look()
    assert files.kept == {} and frame.kept is None
    with pytest.raises(files.RecordsError, match="no such records folder"):
        files.read(root)


def test_what_is_just_being_written_is_not_kept(root, admitted, monkeypatch):
    monkeypatch.setattr(warm, "_TICK_S", 1e-3)
    ahead = 1e9 + next(root.rglob("*.json")).stat().st_ctime
    monkeypatch.setattr(warm.time, "time", lambda: ahead - 2e9)
    warm.Records([root]).look()
    assert files.kept == {} and admitted == []


def command(*arguments: str) -> subprocess.CompletedProcess:
    started = [sys.executable, "-m", *arguments]
    return subprocess.run(started, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


def test_a_server_that_begins_ahead_is_the_one_that_answers(root):
    """Without a command nothing is waited for, and a second start is none."""

    def serving() -> list[int]:
        asked = ["analysis.warm", "--serve"]
        found = (one.info for one in psutil.process_iter(["pid", "cmdline"]))
        lines = [(one["pid"], one["cmdline"] or []) for one in found]
        return [pid for pid, line in lines if line[2:4] == asked and line[-1] == str(root)]

    for _ in range(2):
        done = command("analysis.warm", str(root), "--")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        # A process that has just begun has no command line yet.
        end = time.monotonic() + 20
        while not (found := serving()) and time.monotonic() < end:
            time.sleep(0.01)
        assert len(found) == 1
    (server,) = found
    done = command("analysis.warm", str(root), "--", "across.overview", "--figure", "none")
    assert done.returncode == 2 and "invalid choice: 'none'" in done.stderr
    assert serving() == [server]


def test_a_warm_command_says_and_writes_what_a_cold_one_does(root, tmp_path):
    (root / "bad.json").write_text("{")
    told, made = {}, {}
    for way, module in (("cold", "analysis."), ("warm", "")):
        out = tmp_path / way
        for status, name, *given in (
            (0, "claims", "--out", f"{out}/claims.json", str(root)),
            (0, "notebook", "dilated", "--build", str(out), str(root)),
            (0, "pages.notebook_page", f"{out}/notebooks/dilated.ipynb"),
            (1, "claims", "--claims", f"{tmp_path}/none.yaml", str(root)),
            (2, "across.overview", "--figure", "none"),
        ):
            start = () if module else ("analysis.warm", str(root), "--")
            done = command(*start, module + name, *given)
            assert done.returncode == status, done.stderr
            # How long a notebook took is said too, and is another each time.
            said = re.sub(r"\d+(\.\d+)? s\b", "... s", done.stdout + done.stderr)
            # A kernel that is told to end while it still ends says so.
            said = re.sub(r"\[IPKernelApp\] ERROR \| KeyboardInterrupt.*\n", "", said)
            told.setdefault((name, status), []).append(said[-200:])
        # So it is in the notebook; its parameters stand in a cell with a random name.
        for path in sorted(out.rglob("*.*")):
            if path.suffix != ".ipynb":
                content = path.read_bytes().replace(bytes(out), b"")
                content = re.sub(rb'injected-parameters" id="cell-id=\w+', b"", content)
                made.setdefault(path.relative_to(out), []).append(content)
    for both in (told, made):
        assert {name: len(found) for name, found in both.items()} == dict.fromkeys(both, 2)
        assert {n: f for n, f in both.items() if f[0] != f[1]} == {}
    assert len(made) > 50
