"""Publishing an archive: record by record, what is refused named, the sources a commit's."""

import copy
import json
import lzma
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from experiments import (
    __main__,
    archive,
    publish_archive,
    record,
    rounds,
    schema,
    tile_tables,
    trusted,
)

ROOT = Path(__file__).parents[2]
SHA = "1234567890" * 4
TREES = {"models": "a" * 40, "experiments": "b" * 40}
MANIFEST = {
    "format": 1,
    "rehearsal": False,
    "started_at": "2026-11-27T10:15:00+00:00",
    "machine": "nvidia-h200-3f9a1c",
    "trees": TREES,
    "minutes": 28,
}
CAMPAIGN = "nvidia-h200-3f9a1c/campaigns/20261127T101500Z"


HOURS = ("2026-11-27T12:00:00+01:00", "2026-11-27T10:20:00+00:00", "2026-11-27T10:40:00Z")
# The second is the first that was begun.
ROUND = "2026-11-27T102000Z"


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    """Who publishes, where git does not say."""
    monkeypatch.setattr(trusted, "myself", lambda: "somebody")


@pytest.fixture
def records(published):
    """Three records of a round by their place, as a machine without git writes them."""
    paths = sorted(published("dilated-*"), key=lambda path: path.parents[1].name)[:3]
    found = {}
    for path, started_at in zip(sorted(paths, key=lambda path: path.name), HOURS, strict=True):
        data = json.loads(path.read_text()) | {"started_at": started_at}
        data["software"] |= {"git_commit": None, "git_dirty": None}
        found[f"records/{path.parents[1].name}/round-1/{path.name}"] = data
    return found


def filed(name, round_=ROUND):
    """Where a record of an archive is filed, under published or rehearsed."""
    _, machine, _, file = name.split("/")
    return f"{machine}/{round_}/{file}"


@pytest.fixture(autouse=True)
def commits(monkeypatch):
    """The commits that are here: their trees."""
    here = {SHA: TREES}
    monkeypatch.setattr(
        publish_archive,
        "commit_of",
        lambda trees: next((sha for sha, own in here.items() if own == trees), None),
    )
    return here


@pytest.fixture
def kernels(tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir()
    for path in tile_tables.FOLDER.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def packed(tmp_path):
    """Pack a campaign of these files (text, bytes or JSON); returns the archive."""

    def make(files, manifest=MANIFEST, **changes):
        folder = tmp_path / f"campaign-{len(list(tmp_path.iterdir()))}"
        if manifest is not None:
            files = {"campaign.json": {**manifest, **changes}, **files}
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        folder.mkdir(exist_ok=True)
        archive.pack(folder, folder / "it.tar.xz")
        return folder / "it.tar.xz"

    return make


@pytest.fixture
def publish(tmp_path, kernels, capsys):
    """Publish an archive to a temporary `results`; returns status, lines out and lines told."""

    def run(path, **options):
        results = tmp_path / "results"
        status = publish_archive.publish_archive(path, results=results, kernels=kernels, **options)
        told = capsys.readouterr()
        return status, told.out.splitlines(), told.err.splitlines()

    return run


def files_of(folder):
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in found if not name.endswith(trusted.NAME))


def test_records_without_git_get_the_commit_of_their_sources(tmp_path, publish, packed, records):
    status, out, err = publish(packed({**records, "summary.md": "# é\n", "logs/a": "log"}))
    assert (status, err) == (0, []) and out[0] == "published 3 records, refused 0"
    home = tmp_path / "results/published"
    assert files_of(tmp_path / "results") == sorted(
        [f"published/{filed(name)}" for name in records] + [f"published/{CAMPAIGN}/summary.md"]
    )
    for name, data in records.items():
        data["software"] |= {"git_commit": SHA, "git_dirty": False}
        path = home / filed(name)
        assert json.loads(path.read_text()) == data and schema.load(path)
    assert (home / CAMPAIGN / "summary.md").read_text() == "# é\n"


def test_sources_that_no_commit_has_are_refused_with_what_to_do(
    tmp_path, publish, packed, records, commits
):
    commits.clear()
    first = min(records)
    records[first]["software"] |= {"git_commit": "c" * 40, "git_dirty": False}
    status, out, err = publish(packed(records))
    assert status == 0 and out[0] == "published 1 records, refused 2"
    for name, line in zip(sorted(records)[1:], err, strict=True):
        assert line.startswith(f"refused: {name}: software.git_commit: is null, and no commit here")
        assert "models aaaaaaaaaaaa" in line and "commit those sources, and publish again" in line
    path = tmp_path / "results/published" / filed(first)
    assert json.loads(path.read_text()) == records[first]


def changed(data, **changes):
    data = copy.deepcopy(data)
    for key, value in changes.items():
        at, (*above, last) = data, key.split("__")
        for one in above:
            at = at[int(one) if isinstance(at, list) else one]
        at[int(last) if isinstance(at, list) else last] = value
    return data


FAILED = {"status": "failed", "replicates": [], "error": None}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tier": "smoke"}, "tier: is smoke, which is not for publishing"),
        ({"tier": "huge"}, "tier: Input should be 'smoke', 'laptop' or"),
        ({"software__git_dirty": True}, "software.git_dirty: measured with uncommitted changes"),
        (
            {"software__git_commit": "x", "software__git_dirty": False},
            "software.git_commit: String should match",
        ),
        ({"experiment": "dilated"}, "experiment: Extra inputs are not permitted"),
        ({"started_at": "0001-01-01T00:00:00+14:00"}, "started_at: is of another century"),
        ({"machine__id": "../../x"}, "machine.id: is '../../x', and it lies under"),
        ({"variant": "none-such"}, "variant: is 'none-such', and there is no such variant"),
        ({"case__seq_len": 77}, "case: belongs at "),
        ({"case__seq_len": 10**4000}, "case: belongs at "),
        ({"wall_s": float("nan")}, "wall_s: Input should be a finite number"),
        ({"replicates__0__samples_ms__0": float("inf")}, "replicates.0.samples_ms.0: Input should"),
        ({"wall_s": "-inf"}, "wall_s: Input should be a valid number"),
        ({"\x1b[2J": 1}, "\\x1b[2J: Extra inputs are not permitted"),
        ({"\ud800": 1}, "record: Input should be a valid string, unable to parse"),
        ({"schema_version": 1}, "schema_version: is 1, this code reads 2"),
        ({"reason": "x" * 10**6}, "reason: String should have at most 2000 characters"),
    ],
)
def test_what_is_wrong_with_a_record_is_told_and_the_rest_published(
    tmp_path, publish, packed, records, change, told
):
    name = sorted(records)[2]
    records[name] = changed(records[name], **change)
    status, out, err = publish(packed(records))
    assert status == 0 and out[0] == "published 2 records, refused 1"
    (line,) = err
    assert line.startswith(f"refused: {name}: ") and told in line and line.isprintable()
    assert len(files_of(tmp_path / "results")) == 2


@pytest.mark.parametrize(
    ("round_", "told"),
    [
        ("round-0", "expected a round's folder, not 'round-0'"),
        ("dilated", "expected a round's folder, not 'dilated'"),
        (ROUND, f"expected a round's folder, not '{ROUND}'"),
    ],
)
def test_a_record_outside_a_round_is_refused(publish, packed, records, round_, told):
    name = max(records)
    records[name.replace("round-1", round_)] = records.pop(name)
    status, out, err = publish(packed(records))
    assert status == 0 and out[0] == "published 2 records, refused 1" and told in err[0]


def test_a_case_of_no_grid_is_refused(publish, packed, records):
    name = max(records)
    odd = changed(records.pop(name), case__seed=77)
    records[name.replace(".json", "_seed77.json")] = odd
    status, out, err = publish(packed(records))
    assert status == 0 and out[0] == "published 2 records, refused 1"
    assert err[0].endswith("_seed77.json: case: is a point of no grid")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 200_000, "not JSON that can be read: nested too deeply"),
        ('{"schema_version": 2, "x": ' * 30_000, "not JSON that can be read: nested too deeply"),
        ('{"schema_version": 2, "wall_s": ' + "9" * 10_000 + "}", "not JSON (truncated?)"),
        ("", "not JSON (truncated?)"),
        (b"\xff\xfe{\0}\0", "not JSON (truncated?)"),
        ("null", "schema_version: is None"),
        ("[" + "1," * 10**5 + "1]", "schema_version: is None"),
        ("[" + "1," * 10**6 + "1]", "file: has more than 1,048,576 bytes"),
        ('{"schema_version": 2}', "tier: Field required"),
    ],
)
def test_json_that_is_none_or_too_much_is_refused(publish, packed, records, text, told):
    name = min(records).rpartition("/")[0] + "/odd.json"
    status, out, err = publish(packed({**records, name: text}))
    assert status == 0 and out[0] == "published 3 records, refused 1"
    assert err[0].startswith(f"refused: {name}: {told}")


def test_failures_of_our_own_are_named_as_findings_and_those_of_peers_published(
    tmp_path, publish, packed, records, published
):
    ours = min(records)
    records[ours] = {**records[ours], **FAILED, "reason": "its kernel failed its trust check"}
    wrong = min(
        path
        for path in published("ring-attention-pytorch_*")
        if json.loads(path.read_text())["status"] == "failed"
    )
    peer = f"records/{wrong.parents[1].name}/round-2/{wrong.name}"
    status, out, err = publish(packed({**records, peer: wrong.read_text()}))
    assert status == 0 and out[0] == "published 3 records, refused 1"
    assert "1 of the refused are failures of our own code, findings to mend" in out
    assert err == [
        f"refused, our own fault to mend: {ours}: status: is failed "
        "(its kernel failed its trust check)"
    ]
    began = rounds.name_at(datetime.fromisoformat(json.loads(wrong.read_text())["started_at"]))
    assert (tmp_path / "results/published" / filed(peer, began)).exists()
    assert not (tmp_path / "results/published" / filed(ours)).exists()


def test_a_rehearsal_is_filed_apart_with_all_that_is_let_in(
    tmp_path, publish, packed, records, commits
):
    commits.clear()
    first, second, third = sorted(records)
    records[first]["tier"] = "smoke"
    records[second] = {**records[second], **FAILED, "reason": "made wrong on purpose"}
    wrong = {third.replace("dilated-", "other-"): records[third]}
    # Smaller than the cases of any grid.
    records[third.replace(".json", "_seed77.json")] = changed(records.pop(third), case__seed=77)
    made = packed({**records, **wrong, "summary.md": "rehearsed"}, rehearsal=True)
    status, out, err = publish(made)
    assert status == 0 and out[0] == "published 3 records, refused 1"
    assert any("it is a rehearsal: filed under" in line for line in out)
    assert len(err) == 1 and "case: belongs at" in err[0]
    for name, data in records.items():
        path = tmp_path / "results/rehearsed" / filed(name)
        assert json.loads(path.read_text()) == data
    assert (tmp_path / f"results/rehearsed/{CAMPAIGN}/summary.md").read_text() == "rehearsed"
    assert not (tmp_path / "results/published").exists()
    with pytest.raises(ValueError, match="--tiles: .* is of a rehearsal"):
        publish(made, take_tiles=True)


def test_the_rehearsed_are_ignored_by_git_and_are_no_default_of_the_analysis():
    done = subprocess.run(
        ["git", "check-ignore", "-q", "results/rehearsed/m/round/x.json"], cwd=ROOT
    )
    assert done.returncode == 0
    from analysis.records.frame import DEFAULT_ROOTS

    assert DEFAULT_ROOTS == ("results/published", "results/local")
    assert "rehearsed" not in (ROOT / "Snakefile").read_text()


def test_the_same_again_is_fine_and_another_record_is_refused(
    tmp_path, publish, packed, records, commits
):
    publish(packed(records))
    # The newest commit with the same sources has changed: the records have not.
    commits.clear()
    commits["d" * 40] = TREES
    status, out, err = publish(packed(records))
    assert (status, err) == (0, []) and out[:2] == [
        "published 3 records, refused 0",
        "3 of the published were there already, the same",
    ]
    first, second, third = sorted(records)
    homes = [tmp_path / "results/published" / filed(name) for name in sorted(records)]
    before = [path.read_text() for path in homes]
    assert json.loads(before[0])["software"]["git_commit"] == SHA
    records[first] |= {"started_at": "2026-11-27T18:00:00Z"}
    records[third] |= {"wall_s": records[third]["wall_s"] + 1.0}
    status, out, err = publish(packed(records))
    assert status == 0 and out[0] == "published 1 records, refused 2"
    assert [line.split(": ")[1] for line in err] == [first, third]
    assert all("and a round is never overwritten" in line for line in err)
    assert [path.read_text() for path in homes] == before
    # What lies there and is no record is somebody's to look at.
    homes[1].write_text("{")
    status, out, err = publish(packed({second: records[second]}))
    assert status == 1 and "what is published is no record" in err[0]
    assert homes[1].read_text() == "{"


def test_each_round_is_filed_by_itself(tmp_path, publish, packed, records):
    later = {name.replace("round-1", "round-2"): data for name, data in records.items()}
    later = {
        name: {**data, "started_at": f"2026-11-27T11:0{number}:00Z"}
        for number, (name, data) in enumerate(later.items())
    }
    status, out, err = publish(packed({**records, **later}))
    assert (status, err) == (0, []) and out[0] == "published 6 records, refused 0"
    assert files_of(tmp_path / "results/published") == sorted(
        [filed(name) for name in records] + [filed(n, "2026-11-27T110000Z") for n in later]
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "format: expected 1, which this code reads"),
        ({"format": True}, "format: expected 1"),
        ({"rehearsal": "no"}, "rehearsal: expected true or false"),
        ({"rehearsal": 0}, "rehearsal: expected true or false"),
        ({"machine": "../up"}, "machine: expected a machine's id"),
        ({"machine": ["a"]}, "machine: expected a machine's id"),
        ({"trees": {"models": "a" * 40}}, "trees: expected git's tree SHA-1"),
        ({"trees": {"models": "a" * 40, "experiments": "--all"}}, "trees: expected git's tree"),
        ({"trees": None}, "trees: expected git's tree SHA-1"),
        ({"started_at": "today"}, "started_at: expected a time in UTC"),
        ({"started_at": 1}, "started_at: expected a time in UTC"),
        ({"started_at": "0001-01-01T00:00:00+14:00"}, "started_at: expected a time in UTC"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_publishes_nothing(
    tmp_path, publish, packed, records, change, told
):
    status, out, err = publish(packed(records, **change))
    assert status == 1 and out == ["published 0 records, refused 4"]
    assert err[0].startswith(f"refused: campaign.json: {told}")
    assert err[-1] == "error: no record was published"
    assert not (tmp_path / "results").exists()


def test_no_manifest_and_no_archive(tmp_path, publish, packed, records):
    status, out, err = publish(packed(records, manifest=None))
    assert status == 1 and "campaign.json: is not in the archive" in err[0]
    (tmp_path / "text.tar.xz").write_text("none")
    status, out, err = publish(tmp_path / "text.tar.xz")
    assert status == 1 and out == ["published 0 records, refused 2"]
    assert err[0] == "refused: text.tar.xz: is no .tar.xz archive"


def test_of_an_archive_cut_short_what_came_is_published(tmp_path, publish, packed, records):
    whole = packed({**records, "logs/a": bytes(range(256)) * 40}).read_bytes()
    (tmp_path / "cut.tar.xz").write_bytes(whole[:-40])
    status, out, err = publish(tmp_path / "cut.tar.xz")
    assert status == 0 and err == ["refused: cut.tar.xz: is cut short"]
    assert out[0] == "published 3 records, refused 1"


def table(name):
    return json.loads((tile_tables.FOLDER / f"{name}.json").read_text())


def test_tables_are_written_as_they_lie_in_the_repository(kernels):
    for path in tile_tables.FOLDER.glob("*.json"):
        assert tile_tables.text_of(json.loads(path.read_text())) == path.read_text()


def test_tiles_are_kept_as_text_and_taken_when_asked(tmp_path, publish, packed, records, kernels):
    hop, dilated = table("hop"), table("dilated")
    hop["forward"][3] |= {"block_m": 256, "source": "fastest of 9 on NVIDIA H200: 1.2 ms"}
    made = packed({**records, "tiles/hop.json": hop, "tiles/dilated.json": dilated})
    status, out, _ = publish(made)
    assert out[-1] == "its tile tables hop are new: --tiles puts them in models/kernels"
    kept = tmp_path / f"results/published/{CAMPAIGN}/tiles.txt"
    parts = kept.read_text().split("\n\n")
    assert [part.partition("\n")[0] for part in parts] == ["dilated.json", "hop.json"]
    assert json.loads(parts[1].partition("\n")[2]) == hop
    assert json.loads((kernels / "hop.json").read_text()) == table("hop")
    status, out, _ = publish(made, take_tiles=True)
    assert status == 0 and out[-1] == "replaced the tile tables hop of models/kernels"
    assert (kernels / "hop.json").read_text() == tile_tables.text_of(hop)
    before, after = (tile_tables.text_of(one).splitlines() for one in (table("hop"), hop))
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_nothing_that_explains_records_is_taken_for_one(tmp_path, publish, packed, records):
    publish(packed({**records, "summary.md": "# all", "tiles/hop.json": table("hop")}))
    home = tmp_path / "results/published"
    assert {"summary.md", "tiles.txt"} == {path.name for path in (home / CAMPAIGN).iterdir()}
    places = {home / filed(name) for name in records}
    assert set(rounds.record_files(home)) == set(rounds.well_placed(home)) == places


def entry(**changes):
    def change(table):
        table["forward"][0] |= changes

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (entry(block_m=0), "forward, entry 1: block_m: 0 is not what a tile can have"),
        (entry(block_m=48), "forward, entry 1: block_m: 48"),
        (entry(block_n=2**40), "forward, entry 1: block_n: 1099511627776"),
        (entry(warps=True), "forward, entry 1: warps: True"),
        (entry(stages=3.0), "forward, entry 1: stages: 3.0"),
        (entry(stages="3"), "forward, entry 1: stages: '3'"),
        (entry(stages=[[]]), "forward, entry 1: stages: [[]]"),
        (entry(maxnreg=256), "forward, entry 1: maxnreg: 256"),
        (entry(maxnreg=False), "forward, entry 1: maxnreg: False"),
        (entry(rotated=1), "forward, entry 1: rotated: 1"),
        (entry(rotated=None), "forward, entry 1: rotated: None"),
        (lambda t: t["backward_q"][0].update(rotated=True), "backward_q, entry 1: rotated: true"),
        (lambda t: t["forward"][1].update(rotated=True), "forward, entry 2: rotated: true"),
        (entry(capability=-80), "forward, entry 1: capability: -80"),
        (entry(source="two\nlines"), "forward, entry 1: source: expected one line"),
        (entry(source="x" * 401), "forward, entry 1: source: expected one line"),
        (entry(source=7), "forward, entry 1: source: expected one line"),
        (entry(more=1), "forward, entry 1: expected a mapping with the keys"),
        (lambda t: t["forward"][0].pop("bits"), "forward, entry 1: expected a mapping"),
        (lambda t: t["forward"].append(t["forward"][0]), "forward, entry 25: stands there twice"),
        (lambda t: t["forward"].pop(0), "forward: lacks the entry for capability 80, head_dim 32"),
        (lambda t: t.update(forward={}), "forward: expected a list of entries"),
        (lambda t: t.pop("forward"), "expected a mapping with the kernels forward, backward_q"),
        (lambda t: t.update(sideways=[]), "expected a mapping with the kernels"),
    ],
)
def test_a_tile_table_with_anything_odd_is_refused_whole(
    tmp_path, publish, packed, records, kernels, change, told
):
    odd = table("hop")
    change(odd)
    made = packed({**records, "tiles/hop.json": odd})
    status, out, err = publish(made, take_tiles=True)
    assert status == 0 and out[0] == "published 3 records, refused 1"
    assert err[0].startswith(f"refused: tiles/hop.json: {told}")
    assert (kernels / "hop.json").read_text() == (tile_tables.FOLDER / "hop.json").read_text()
    assert not (tmp_path / f"results/published/{CAMPAIGN}").exists()


def test_unknown_tables_and_summaries_that_are_no_text(publish, packed, records):
    files = {"tiles/__init__.json": {}, "tiles/x.json": "[" * 10**5, "summary.md": "\x1b[2J"}
    status, out, err = publish(packed({**records, **files}))
    assert status == 0 and out[0] == "published 3 records, refused 3"
    assert err[0].startswith("refused: tiles/__init__.json: there is no such table: expected one")
    assert err[1].startswith("refused: tiles/x.json: not JSON that can be read: nested too deeply")
    assert err[2] == "refused: summary.md: expected UTF-8 text without control characters"


def test_an_archive_is_validated_without_publishing(capsys, packed, records):
    good = packed(records)
    assert __main__.main(["validate", str(good)]) == 0
    assert capsys.readouterr().out == "3 records valid, 0 not\n"
    first = min(records)
    records[first]["wall_s"] = "long"
    assert __main__.main(["validate", str(packed({**records, "tiles/x.json": {}}))]) == 1
    told = capsys.readouterr()
    assert told.out == "2 records valid, 2 not\n"
    assert f"error: {first}: wall_s: " in told.err and "error: tiles/x.json: there is" in told.err


def test_the_command_line_takes_archives_and_tells_bad_input(capsys, tmp_path, packed, records):
    calls = []
    made = packed(records)
    original = publish_archive.publish_archive
    publish_archive.publish_archive = lambda path, take_tiles: calls.append((path, take_tiles)) or 1
    try:
        assert __main__.main(["publish", str(made), "--tiles"]) == 1
    finally:
        publish_archive.publish_archive = original
    assert calls == [(made, True)]
    for arguments, told in (
        ([str(made.parent)], "is a campaign's folder: name the .tar.xz in it"),
        ([str(tmp_path), "--tiles"], "is no archive of a campaign"),
        ([str(tmp_path / "absent.tar.xz")], "absent.tar.xz: no such file or folder"),
    ):
        assert __main__.main(["publish", *arguments]) == 2
        assert told in capsys.readouterr().err


WITHOUT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "yaml", "pandas", "torch", "triton", "numpy"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import experiments.archive, experiments.source_tree, experiments.tile_tables
from experiments.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["publish", "validate"])
def test_without_pydantic_it_says_which_environment_it_needs(command, packed, records):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, command, str(packed(records))],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"error: {command}: needs pydantic, which is not here: use the environment of "
        "envs/pipeline.txt, which `make paper` sets up in .venv\n"
    )


def test_records_that_cannot_be_written_are_told(tmp_path, publish, packed, records):
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises((record.RecordError, OSError)):
        publish(packed(records))


def test_a_bomb_of_records_is_refused(tmp_path, publish):
    (tmp_path / "bomb.tar.xz").write_bytes(lzma.compress(bytes(10**7), preset=0))
    status, out, err = publish(tmp_path / "bomb.tar.xz")
    assert status == 1 and out == ["published 0 records, refused 1"]
