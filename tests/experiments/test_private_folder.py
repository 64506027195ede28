"""Locks and temporary files lie in a folder of this user alone, and outlive nobody."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from experiments import private_folder
from experiments.private_folder import NotPrivate, open_lock, private, sweep, temporary

HOLD = """
import os, sys, time
from experiments.private_folder import temporary
with temporary("case") as folder:
    (folder / "reference.pt").write_bytes(bytes(1000))
    if sys.argv[1] != "fork" or os.fork():
        print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(private_folder, "SHARED", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def holder(how="alone"):
    command = [sys.executable, "-c", HOLD, how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    return process, Path(process.stdout.readline().strip())


def test_the_folder_is_this_users_alone(tmp_path):
    folder = private(tmp_path)
    assert folder == tmp_path / f"attention-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700 and private(tmp_path) == folder
    folder.chmod(0o755)
    with pytest.raises(NotPrivate, match=r"attention-\d+: expected a folder of this user alone"):
        private(tmp_path)


def test_a_prepared_link_or_folder_is_refused(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / f"attention-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(NotPrivate):
        open_lock("cpu.lock")
    assert list(elsewhere.iterdir()) == []
    (tmp_path / f"attention-{os.getuid()}").unlink()
    private(tmp_path)
    monkeypatch.setattr(private_folder.os, "getuid", lambda: os.geteuid() + 1)
    os.rename(tmp_path / f"attention-{os.geteuid()}", tmp_path / f"attention-{os.getuid()}")
    with pytest.raises(NotPrivate, match="of user"):
        private(tmp_path)


def test_a_prepared_lock_that_is_a_link_is_not_followed(tmp_path):
    (private(tmp_path) / "cpu.lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match=r"cpu\.lock"):
        open_lock("cpu.lock")
    assert not (tmp_path / "made").exists()


def test_locks_lie_in_one_folder_whatever_the_temporary_one_is(tmp_path, monkeypatch):
    os.close(open_lock("cpu.lock"))
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    lock = open_lock("cpu.lock")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    assert list(tmp_path.rglob("cpu.lock")) == [private(tmp_path) / "cpu.lock"]
    assert list(other.iterdir()) == []


def test_a_temporary_folder_goes_with_its_use(tmp_path):
    with temporary("case") as folder:
        assert folder.parent == private(tmp_path) / "temporary"
        assert folder.name.startswith("case-") and sweep() == []
        (folder / "file").touch()
    assert not folder.exists()


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_what_the_dead_left_is_swept_and_what_the_living_use_is_not(how):
    alive, used = holder()
    dead, left = holder(how)
    dead.kill()
    dead.wait()
    if how == "fork":
        # A fork may still use it.
        assert sweep() == []
        os.killpg(dead.pid, signal.SIGKILL)
        while sweep() != [left]:
            assert left.exists()
    else:
        assert sweep() == [left]
    assert not left.exists() and (used / "reference.pt").exists()
    alive.kill()
    alive.wait()
