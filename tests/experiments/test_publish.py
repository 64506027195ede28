"""Publishing what was measured here: all or none, a round named after its first record."""

import json
from pathlib import Path

import pytest

from experiments import publish as publishing
from experiments import record, trusted
from experiments.__main__ import main
from experiments.publish import publish, validate


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    """Who publishes, where git does not say."""
    monkeypatch.setattr(trusted, "myself", lambda: "somebody")


@pytest.fixture
def sources(published):
    """Three published records of dense attention on one machine, in one round, with a host."""
    by_round = {}
    for path in published("dense_*"):
        if path.parent.name > "2026-11-28":
            by_round.setdefault(path.parent, []).append(path)
    return next(paths[:3] for paths in by_round.values() if len(paths) >= 3)


@pytest.fixture
def put(tmp_path, sources):
    """Put records into a local round with their hour of beginning; returns their paths."""

    def write(round_, *hours, **changes):
        paths = []
        for source, hour in zip(sources, hours, strict=False):
            data = {**json.loads(source.read_text()), **changes}
            data["started_at"] = f"2026-11-28T{hour:02}:30:00+01:00"
            paths.append(tmp_path / "local" / source.parents[1].name / round_ / source.name)
            record.write(paths[-1], data)
        return paths

    return write


def publish_all(tmp_path):
    return publish(tmp_path / "local", tmp_path / "published")


def places(tmp_path):
    found = (tmp_path / "published").rglob("*.json")
    return sorted(path.relative_to(tmp_path / "published").as_posix() for path in found)


def test_a_round_is_named_by_its_first_record_and_another_lies_beside_it(tmp_path, sources, put):
    machine = sources[0].parents[1].name
    local = [*put("round-1", 12, 11, 13), *put("round-2", 20, 19)]
    targets = publish_all(tmp_path)
    expected = [f"{machine}/2026-11-28T103000Z/{path.name}" for path in sources]
    expected += [f"{machine}/2026-11-28T183000Z/{path.name}" for path in sources[:2]]
    assert places(tmp_path) == sorted(expected)
    for path, target in zip(local, targets, strict=True):
        assert target.read_text() == path.read_text()
    assert validate(tmp_path / "published") == (5, [])


def test_the_command_says_how_many_records_lie_where(tmp_path, put, monkeypatch, capsys):
    (first, *_), _ = put("round-1", 11, 12), put("round-2", 20)
    monkeypatch.setattr(publishing, "publish", lambda root: publish(root, tmp_path / "published"))
    assert main(["publish", str(tmp_path / "local")]) == 0
    folder = tmp_path / "published" / first.parents[1].name
    assert capsys.readouterr().out.splitlines() == [
        f"{folder / '2026-11-28T103000Z'}: 2 published",
        f"{folder / '2026-11-28T193000Z'}: 1 published",
    ]


def test_a_published_round_takes_what_it_lacks_and_is_never_overwritten(tmp_path, put):
    put("round-1", 11, 12)
    publish_all(tmp_path)
    put("round-1", 11, 12, 13)
    assert len(publish_all(tmp_path)) == 3 and len(places(tmp_path)) == 3
    before = {path: (tmp_path / "published" / path).read_text() for path in places(tmp_path)}
    first, *_ = put("round-2", 20)
    put("round-1", 11, 15)
    with pytest.raises(record.RecordError, match="another record of its case and round") as told:
        publish_all(tmp_path)
    assert "measure a whole round anew" in str(told.value)
    after = {path: (tmp_path / "published" / path).read_text() for path in places(tmp_path)}
    # Nothing is copied where one record may not be: neither is the second round.
    assert first.exists() and after == before


def test_what_is_published_is_published_again_under_its_own_name(tmp_path, sources, put):
    put("2026-11-01T000000Z", 11)
    (target,) = publish_all(tmp_path)
    assert target.parent.name == "2026-11-01T000000Z"


def test_what_stands_aside_is_not_published(tmp_path, put):
    (path,) = put("round-1", 12)
    aside = path.parents[1] / "outdated" / "round-1" / path.name
    aside.parent.mkdir(parents=True)
    aside.write_text(path.read_text().replace("T12:30", "T01:30"))
    (target,) = publish_all(tmp_path)
    assert target.parent.name == "2026-11-28T113000Z"
    with pytest.raises(record.RecordError, match="place: was set aside"):
        publish(aside.parents[1], tmp_path / "elsewhere")
    with pytest.raises(record.RecordError, match="place: was set aside"):
        publish(aside.parent / ".." / aside.parent.name, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tier": "smoke"}, "tier: is smoke"),
        ({"software": {"git_dirty": True}}, "git_dirty"),
        ({"status": "failed", "reason": "wrong", "replicates": [], "error": None}, "is failed"),
    ],
)
def test_publish_takes_only_what_may_be_published(tmp_path, put, change, told):
    path, _ = put("round-1", 12, 13)
    data = record.read(path)
    data["command"] = data["command"].replace("laptop", change.get("tier", "laptop"))
    data.update({k: v if k != "software" else {**data[k], **v} for k, v in change.items()})
    record.write(path, data)
    with pytest.raises(record.RecordError, match=told):
        publish_all(tmp_path)
    assert not (tmp_path / "published").exists()


def test_a_peer_that_is_wrong_is_published_as_failed(tmp_path, published):
    found = [p for p in published("*") if json.loads(p.read_text())["status"] == "failed"]
    assert found and all(path.name.startswith("ring-attention-pytorch_") for path in found)
    wrong = tmp_path / "local" / Path(*found[0].parts[-3:])
    wrong.parent.mkdir(parents=True)
    wrong.write_text(found[0].read_text())
    (target,) = publish_all(tmp_path)
    assert json.loads(target.read_text())["reason"].startswith("gradient: relative error")
