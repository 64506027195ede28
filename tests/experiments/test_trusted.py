"""Published rounds are believed as far as somebody vouches for them, as they were then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import publish as publishing
from experiments import record, trusted
from experiments.digest import ROOT
from experiments.publish import publish
from experiments.record import RecordError
from experiments.source_tree import tree_sha

ROUND = ("some-card-0a1b2c", "2026-11-28T103000Z")


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    path = folder.joinpath(*ROUND, "case.json")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    return folder


def test_a_round_holds_until_a_byte_of_it_changes(published):
    assert trusted.holding(published) == set()
    trusted.add(published, [ROUND], "somebody")
    assert trusted.holding(published) == {ROUND}
    path = published.joinpath(*ROUND, "case.json")
    for change in (
        lambda: path.write_text("{} "),
        lambda: path.with_name("further.json").write_text("{}"),
        lambda: path.unlink(),
    ):
        before = {one: one.read_bytes() for one in path.parent.iterdir()}
        change()
        assert trusted.holding(published) == set()
        for one in path.parent.iterdir():
            one.unlink()
        for one, content in before.items():
            one.write_bytes(content)
        assert trusted.holding(published) == {ROUND}


def test_the_file_says_who_and_can_be_checked_by_git(published):
    other = ("a-card-0a1b2c", "2026-11-28T103000Z")
    published.joinpath(*other).mkdir(parents=True)
    (published.joinpath(*other) / "case.json").write_text("[]")
    trusted.add(published, [ROUND], "One Person")
    trusted.add(published, [ROUND, other], "Another")
    lines = (published / trusted.NAME).read_text().splitlines()
    assert lines[1].startswith("# To check a line: git rev-parse HEAD:results/published/")
    shas = [tree_sha(published.joinpath(*one)) for one in (other, ROUND)]
    # Who vouched first for the same does so still.
    assert lines[2:] == [
        f"{'/'.join(other)}  {shas[0]}  Another",
        f"{'/'.join(ROUND)}  {shas[1]}  One Person",
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("somebody", "line 3: expected <machine>/<round>"),
        ("../x/2026-11-28T103000Z  " + "a" * 40 + "  me", "line 3: expected"),
        ("m/2026-11-28T103000Z  " + "a" * 39 + "  me", "line 3: expected"),
        ("m/2026-11-28T103000Z  " + "a" * 40, "line 3: expected"),
        ("m/2026-11-28T103000Z  " + "a" * 40 + "  a\u202eb", "line 3: expected"),
        (2 * ("m/2026-11-28T103000Z  " + "a" * 40 + "  me\n"), "line 4: the round stands there"),
    ],
)
def test_a_bad_line_is_told(published, line, told):
    trusted.add(published, [], "me")
    with (published / trusted.NAME).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match="TRUSTED: " + told.replace("(", r"\(")):
        trusted.read(published)


def test_a_link_to_a_round_is_none(published, tmp_path):
    trusted.add(published, [ROUND], "me")
    moved = tmp_path / "moved"
    published.joinpath(*ROUND).rename(moved)
    published.joinpath(*ROUND).symlink_to(moved)
    assert trusted.holding(published) == set()


def test_every_published_round_is_vouched_for():
    folders = {path.parts[-2:] for path in (ROOT / "results/published").glob("*/2*Z/")}
    assert trusted.holding(ROOT / "results/published") == folders


@pytest.fixture
def local(tmp_path):
    """A record that may be published, in a local round."""
    source = next(iter(sorted((ROOT / "results/published").glob("*/2026-11-28T1749*/dense_*"))))
    path = tmp_path / "local" / source.parents[1].name / "round-1" / source.name
    record.write(path, json.loads(source.read_text()))
    return path


def test_whoever_publishes_vouches_for_it(tmp_path, local, monkeypatch):
    monkeypatch.setattr(trusted, "myself", lambda: "Some Body")
    (target,) = publish(tmp_path / "local", tmp_path / "published")
    (line,) = trusted.read(tmp_path / "published")
    assert (line.machine, line.round, line.who) == (*target.parent.parts[-2:], "Some Body")
    assert trusted.holding(tmp_path / "published") == {target.parent.parts[-2:]}
    # The same again is the same, and beside what was changed since nothing is put.
    assert publish(tmp_path / "local", tmp_path / "published") == [target]
    (target.parent / "another.json").write_text("{}")
    with pytest.raises(RecordError, match="holds what nobody vouches for"):
        publish(tmp_path / "local", tmp_path / "published")


def test_what_was_cut_short_goes_on(tmp_path, local, monkeypatch):
    monkeypatch.setattr(trusted, "myself", lambda: "me")
    (target,) = publish(tmp_path / "local", tmp_path / "published")
    # Killed behind the records and before their line.
    (tmp_path / "published" / trusted.NAME).unlink()
    assert publish(tmp_path / "local", tmp_path / "published") == [target]
    assert trusted.holding(tmp_path / "published") == {target.parent.parts[-2:]}


def test_where_nobody_can_vouch_nothing_is_left(tmp_path, local, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trusted, "myself", lambda: "me")
    monkeypatch.setattr(trusted, "add", full)
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path / "local", tmp_path / "published")
    assert [*tmp_path.rglob("published/**/*.json")] == []


def test_what_the_day_caused_is_not_published(tmp_path, local, monkeypatch):
    monkeypatch.setattr(trusted, "myself", lambda: "me")
    data = json.loads(local.read_text())
    lost = {"status": "timeout", "reason": "late", "cause": "day", "replicates": [], "error": None}
    record.write(local, data | lost)
    with pytest.raises(RecordError, match="cause: is the day"):
        publish(tmp_path / "local", tmp_path / "published")


def test_without_a_name_nothing_is_published(tmp_path, local, monkeypatch):
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setattr(trusted, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="git config user.name"):
        publish(tmp_path / "local", tmp_path / "published")
    assert not (tmp_path / "published").exists() and publishing.PUBLISHED.exists()


def test_sources_within_another_repository_have_no_commit(tmp_path):
    outer = tmp_path / "outer"
    inner = outer / "unpacked"
    subprocess.run(["git", "init", "-q", outer], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = ["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=outer, check=True)
    for name in ("experiments", "models"):
        (inner / name).parent.mkdir(exist_ok=True)
        (inner / name).symlink_to(ROOT / name)
    code = (
        "from pathlib import Path; from experiments import provenance;"
        "provenance.ROOT = Path({!r});"
        "print(provenance._git('rev-parse', 'HEAD'), provenance._dirty())"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code.format(str(folder))],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split()
        for folder in (inner, outer)
    ]  # fmt: skip
    assert told[0] == ["None", "None"]
    assert len(told[1][0]) == 40 and told[1][1] == "False"
    assert Path(inner / "models").exists()
