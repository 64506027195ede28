"""Tables of tiles in the place of the repository's own: found, read, digested, told apart."""

import json
import shutil
from dataclasses import replace

import pytest

from experiments import digest, provenance
from models.kernels import tile_tables, tiles

TABLES = ["block_sparse", "dilated", "hop"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder named by ATTENTION_TILES, empty; the tables are as before afterwards."""
    monkeypatch.setenv("ATTENTION_TILES", str(tmp_path))
    yield tmp_path
    monkeypatch.delenv("ATTENTION_TILES")
    tiles.reread()


def altered(folder, table, **changes):
    """The repository's table in `folder`, with changes to the entry for sm_90, D = 64, 16 bits."""
    made = json.loads((tile_tables.HOME / f"{table}.json").read_text())
    entry = next(
        entry
        for entry in made["forward"]
        if (entry["capability"], entry["head_dim"], entry["bits"]) == (90, 64, 16)
    )
    entry.update(changes)
    (folder / f"{table}.json").write_text(json.dumps(made))


def of_hopper():
    return tiles.look_up("dilated", "forward", 90, 64, 16, None)


def test_without_a_folder_all_are_the_repositorys_own(monkeypatch):
    monkeypatch.delenv("ATTENTION_TILES", raising=False)
    assert tile_tables.tables() == TABLES
    assert tile_tables.overlaid() == [] and tile_tables.digest() is None
    assert tile_tables.path("hop") == tile_tables.HOME / "hop.json"
    monkeypatch.setenv("ATTENTION_TILES", "")
    assert tile_tables.overlaid() == []


def test_a_table_there_is_read_and_others_are_the_repositorys(folder):
    own = of_hopper()
    altered(folder, "dilated", warps=16)
    (folder / ".tuned.json").write_text("{}")
    assert tile_tables.overlaid() == ["dilated"]
    assert tile_tables.path("dilated") == folder / "dilated.json"
    assert tile_tables.path("hop") == tile_tables.HOME / "hop.json"
    assert of_hopper() == own
    tiles.reread()
    assert of_hopper() == replace(own, warps=16)


def test_a_folder_that_is_not_there_is_an_error(folder, monkeypatch):
    for wrong in (folder / "nowhere", folder / "file"):
        (folder / "file").touch()
        monkeypatch.setenv("ATTENTION_TILES", str(wrong))
        for ask in (tile_tables.overlaid, tile_tables.digest, tiles.reread):
            with pytest.raises(ValueError, match=f"ATTENTION_TILES={wrong}: no such folder"):
                ask()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"warps": 0}, "warps=0: expected a positive integer"),
        ({"warps": "4"}, "warps='4': expected a positive integer"),
        ({"warps": True}, "warps=True: expected a positive integer"),
        ({"speed": 9}, "unexpected keyword argument 'speed'"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_file(folder, changes, told):
    altered(folder, "dilated", **changes)
    with pytest.raises(ValueError, match=f"dilated.json: not a table of tiles: .*{told}"):
        tiles.reread()


@pytest.mark.parametrize("text", ["", "[]", '{"forward": []}', '{"forward": [', "\xff"])
def test_no_table_at_all_is_an_error(folder, text):
    (folder / "hop.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="hop.json: not a table of tiles"):
        tiles.reread()


def test_digests_follow_the_table_that_is_used(folder):
    variants = ("dilated-triton", "block-sparse", "dilated-sdpa")
    own = {v: digest.code_digest(v) for v in variants}
    # The repository's own bytes: the same code, though a record says where they came from.
    shutil.copy(tile_tables.HOME / "dilated.json", folder)
    assert {v: digest.code_digest(v) for v in variants} == own
    copied = tile_tables.digest()
    assert len(copied) == 16 and int(copied, 16) >= 0
    altered(folder, "dilated", warps=16)
    now = {v: digest.code_digest(v) for v in variants}
    assert {v for v in variants if now[v] != own[v]} == {"dilated-triton"}
    assert tile_tables.digest() != copied
    # Written anew by a tuner while this process runs.
    altered(folder, "dilated", warps=2)
    assert digest.code_digest("dilated-triton") not in (own, now["dilated-triton"])


def test_a_record_says_which_tables_made_it(folder):
    assert provenance.software("0" * 16)["tile_tables"] is None
    altered(folder, "hop", stages=5)
    told = provenance.software("0" * 16)["tile_tables"]
    assert told is not None and told == tile_tables.digest()
