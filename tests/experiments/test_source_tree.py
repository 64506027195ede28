"""The tree of a folder as git has it, without git; and the commit that has the same sources."""

import os
import subprocess
from pathlib import Path

import pytest

from experiments import source_tree

ROOT = Path(__file__).parents[2]
NOBODY = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]


def git(folder, *arguments, **environment):
    done = subprocess.run(
        ["git", *NOBODY, *arguments],
        cwd=folder,
        capture_output=True,
        check=True,
        env={**os.environ, **environment},
    )
    return os.fsdecode(done.stdout).strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q", "-b", "main")
    return tmp_path


def commit(folder, message="one", day=1):
    git(folder, "add", "-A")
    when = f"2026-01-{day:02}T00:00:00Z"
    git(folder, "commit", "-qm", message, GIT_COMMITTER_DATE=when, GIT_AUTHOR_DATE=when)
    return git(folder, "rev-parse", "HEAD")


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def sources(folder, text):
    for name in source_tree.FOLDERS:
        write(folder / name / "a.py", f"{name} {text}")
    return {name: source_tree.tree_sha(folder / name) for name in source_tree.FOLDERS}


ODD = ("a/b", "a.b", "a-b", "a0", "ab", "A", "é/ü", "日本", "z z", "-", "~", "a\nb", "tiles/é.json")


def test_a_tree_is_that_of_git_whatever_the_names(repository):
    for number, name in enumerate(ODD):
        write(repository / "models" / name, "" if number == 3 else f"line {number}\r\n" * number)
    with open(os.fsencode(repository / "models") + b"/not-utf8-\xff", "wb") as file:
        file.write(b"\0\xff")
    write(repository / "models" / "run.sh").chmod(0o755)
    write(repository / "models" / "others.sh").chmod(0o654)
    (repository / "models" / "link").symlink_to("a/b")
    (repository / "models" / "to_folder").symlink_to("a")
    (repository / "models" / "dangling").symlink_to("/nowhere/é")
    commit(repository)
    tracked = git(repository, "ls-tree", "-r", "-z", "HEAD", "models").split("\0")
    modes = {line.split("\t")[1][len("models/") :]: line[:6] for line in tracked if line}
    assert {modes["run.sh"], modes["others.sh"], modes["link"]} == {"100755", "100644", "120000"}
    assert len(modes) == len(ODD) + 6
    assert source_tree.tree_sha(repository / "models") == git(
        repository, "rev-parse", "HEAD:models"
    )


def test_what_is_left_beside_the_sources_does_not_count(repository):
    write(repository / "models" / "a.py")
    commit(repository)
    expected = git(repository, "rev-parse", "HEAD:models")
    for name in (
        *("__pycache__/a.cpython-312.pyc", "deep/__pycache__/b.pyc", "c.pyc", "d.pyo"),
        *(".pytest_cache/v", ".ruff_cache/0", ".123.partial", ".DS_Store"),
    ):
        write(repository / "models" / name)
    (repository / "models" / "empty" / "emptier").mkdir(parents=True)
    os.mkfifo(repository / "models" / "fifo")
    assert source_tree.tree_sha(repository / "models") == expected
    write(repository / "models" / "empty" / "partial")
    assert source_tree.tree_sha(repository / "models") != expected


def test_an_empty_folder_is_the_empty_tree(tmp_path):
    assert source_tree.tree_sha(tmp_path) == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    with pytest.raises(FileNotFoundError):
        source_tree.tree_sha(tmp_path / "absent")


def test_the_sources_of_this_repository(tmp_path):
    # Of what is committed, unpacked as a plain copy: the files here may be edited.
    for name in source_tree.FOLDERS:
        tar = subprocess.run(
            ["git", "archive", "HEAD", name], cwd=ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "x", "-C", tmp_path], input=tar, check=True)
        assert source_tree.tree_sha(tmp_path / name) == git(ROOT, "rev-parse", f"HEAD:{name}")
    assert source_tree.of_sources() == {
        name: source_tree.tree_sha(ROOT / name) for name in ("models", "experiments")
    }


def test_the_newest_commit_with_the_sources(repository):
    first = sources(repository, "first")
    commit(repository, day=1)
    write(repository / "README", "the paper changed, the sources did not")
    newest_of_first = commit(repository, day=2)
    second = sources(repository, "second")
    of_second = commit(repository, day=3)
    assert source_tree.commit_of(first, repository) == newest_of_first
    assert source_tree.commit_of(second, repository) == of_second
    # One folder of each is no commit's.
    mixed = {"models": first["models"], "experiments": second["experiments"]}
    assert source_tree.commit_of(mixed, repository) is None


def test_commits_are_looked_for_on_every_branch_and_a_loose_head(repository, tmp_path_factory):
    sources(repository, "first")
    commit(repository, day=1)
    git(repository, "checkout", "-q", "-b", "side")
    side = sources(repository, "side")
    of_side = commit(repository, day=2)
    git(repository, "checkout", "-q", "main")
    assert source_tree.commit_of(side, repository) == of_side
    git(repository, "checkout", "-q", "--detach")
    loose = sources(repository, "loose")
    of_loose = commit(repository, day=3)
    assert source_tree.commit_of(loose, repository) == of_loose
    clone = tmp_path_factory.mktemp("clone")
    git(clone, "clone", "-q", str(repository), ".")
    assert source_tree.commit_of(side, clone) == of_side


def test_no_repository_has_no_commit(tmp_path, monkeypatch):
    trees = sources(tmp_path, "first")
    assert source_tree.commit_of(trees, tmp_path) is None
    git(tmp_path, "init", "-q")
    assert source_tree.commit_of(trees, tmp_path) is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert source_tree.commit_of(trees, tmp_path) is None
