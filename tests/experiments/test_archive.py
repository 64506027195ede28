"""Archives: there and back again, within bounds, and whatever a hostile one holds."""

import io
import lzma
import random
import tarfile
import unicodedata
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import archive, tar_stream
from experiments.archive import MAX_MEMBER, ArchiveError, pack, unpack

CASE = "records/machine-1/dilated/" + "v" * 250 + ".json"
GOOD = {"campaign.json": b"{}", CASE: b"[1]", "logs/campaign.log": b"line\n"}


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def regular(name, data=b"x"):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def tar_of(*members, format=tarfile.PAX_FORMAT):
    """The bytes of a tar of (TarInfo, data)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def unpacked(folder, data, compress=lzma.compress):
    """What `unpack` wrote and refused of a tar; nothing else may have appeared."""
    (folder / "hostile.tar.xz").write_bytes(compress(data))
    refused = unpack(folder / "hostile.tar.xz", folder / "into")
    assert sorted(path.name for path in folder.iterdir()) == ["hostile.tar.xz", "into"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    return read(folder / "into"), [(one.name, one.reason) for one in refused]


def test_there_and_back(tmp_path):
    left_out = {
        "campaign-x.tar.xz": b"itself",
        ".lock": b"",
        "records/m/e/.7.partial": b"half",
        "records/m/e/old.json.outdated": b"{}",
        "records/m/top.json": b"{}",
        "steps/deep/er.json": b"{}",
        "elsewhere/x.json": b"{}",
        "notes.md": b"",
    }
    files = {
        **GOOD,
        "summary.md": "é\n".encode(),
        "tiles/hop.json": b"{}",
        "steps/look.json": b"",
        "logs/日本": b"\0",
    }
    folder = write(tmp_path / "campaign", files | left_out)
    (folder / "logs/link").symlink_to("/etc/passwd")
    (folder / "steps/link.json").symlink_to("look.json")
    size = pack(folder, folder / "campaign-x.tar.xz")
    assert size == (folder / "campaign-x.tar.xz").stat().st_size
    assert unpack(folder / "campaign-x.tar.xz", tmp_path / "into") == []
    assert read(tmp_path / "into") == files
    with tarfile.open(folder / "campaign-x.tar.xz", "r|xz") as tar:
        assert tar.getnames() == [
            *("campaign.json", "summary.md", "tiles/hop.json", "steps/look.json"),
            *(CASE, "logs/campaign.log", "logs/日本"),
        ]


def test_the_same_files_make_the_same_archive(tmp_path):
    packed = []
    for order in (GOOD, dict(reversed(GOOD.items()))):
        folder = write(tmp_path / str(len(packed)), order)
        folder.chmod(0o700)
        pack(folder, tmp_path / "made.tar.xz")
        packed.append((tmp_path / "made.tar.xz").read_bytes())
    assert packed[0] == packed[1]


PART = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60).filter(
    lambda part: part[0] != "." and not set(part) & set("/\\") and part.isprintable()
)
NAMES = st.one_of(
    st.builds("records/{}/{}/{}.json".format, PART, PART, PART),
    st.builds("logs/{}".format, PART),
    st.builds("tiles/{}.json".format, PART),
)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=8))
def test_any_names_come_back(tmp_path_factory, files):
    folded = {unicodedata.normalize("NFKD", name).casefold() for name in files}
    places = {name.rpartition("/")[0].casefold() for name in files}
    if len(folded) < len(files) or len(places) < len({n.rpartition("/")[0] for n in files}):
        files = dict(list(files.items())[:1])
    tmp_path = tmp_path_factory.mktemp("names")
    pack(write(tmp_path / "campaign", {"campaign.json": b"{}", **files}), tmp_path / "a.tar.xz")
    assert unpack(tmp_path / "a.tar.xz", tmp_path / "into") == []
    assert read(tmp_path / "into") == {"campaign.json": b"{}", **files}


@pytest.fixture
def small(monkeypatch):
    """The bounds a sixteenth of what they are, as noise is slow to pack."""
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    monkeypatch.setattr(archive, "_LOGS_BYTES", (2**17, 2**15, 0))


def test_logs_are_cut_to_their_ends_before_records_are_missed(tmp_path, small):
    noise = random.Random(0).randbytes
    records = {f"records/m/e/{n}.json": noise(3 * 2**16) for n in range(5)}
    logs = {"logs/long": noise(3 * 2**16), "logs/longer": noise(2**18), "logs/short": b"all"}
    folder = write(tmp_path / "campaign", records | logs)
    assert 15 * 2**16 < pack(folder, tmp_path / "a.tar.xz") < 2**20
    assert unpack(tmp_path / "a.tar.xz", tmp_path / "into") == []
    found = read(tmp_path / "into")
    assert {name: found[name] for name in records} == records and found["logs/short"] == b"all"
    first, _, end = found["logs/longer"].partition(b"\n")
    assert first == b"[the first %s bytes are left out here]" % f"{2**18 - len(end):,}".encode()
    assert logs["logs/longer"].endswith(end) and len(end) == (2**15 - 3) // 2
    # The smaller share of logs is too much as well.
    write(folder, {"records/m/e/5.json": noise(2**16 - 10_000)})
    assert pack(folder, tmp_path / "a.tar.xz") < 2**20
    assert unpack(tmp_path / "a.tar.xz", tmp_path / "without") == []
    assert set(read(tmp_path / "without")) == {*records, "records/m/e/5.json"}


def test_the_bound_is_16_mib_and_long_logs_are_cut_without_need_too(tmp_path):
    assert archive.MAX_BYTES == 16 * 2**20
    log = bytes(3 * 2**20)
    pack(write(tmp_path / "campaign", {**GOOD, "logs/long": log}), tmp_path / "a.tar.xz")
    assert unpack(tmp_path / "a.tar.xz", tmp_path / "into") == []
    kept = 2 * 2**20 - len(GOOD["logs/campaign.log"])
    told = f"[the first {3 * 2**20 - kept:,} bytes are left out here]\n".encode()
    assert read(tmp_path / "into") == {**GOOD, "logs/long": told + bytes(kept)}


def test_records_that_are_too_much_are_told_with_their_size(tmp_path, small):
    noise = random.Random(0).randbytes
    folder = write(tmp_path / "c", {f"records/m/e/{n}.json": noise(2**18) for n in range(4)})
    write(folder, {"logs/a": b"log"})
    with pytest.raises(ArchiveError, match=r"a\.tar\.xz: without any log: 1,05.,... bytes packed"):
        pack(folder, tmp_path / "a.tar.xz")
    assert not (tmp_path / "a.tar.xz").exists()
    write(folder, {"records/m/e/0.json": bytes(MAX_MEMBER + 1)})
    with pytest.raises(ArchiveError, match=r"records/m/e/0\.json has 4,194,305 bytes"):
        pack(folder, tmp_path / "a.tar.xz")
    with pytest.raises(ArchiveError, match="absent: no such folder"):
        pack(tmp_path / "absent", tmp_path / "a.tar.xz")


def test_an_archive_that_cannot_be_written_leaves_the_old(tmp_path, monkeypatch):
    folder = write(tmp_path / "campaign", GOOD)
    pack(folder, tmp_path / "a.tar.xz")
    before = (tmp_path / "a.tar.xz").read_bytes()
    write(folder, {"logs/more": b"more"})
    monkeypatch.setattr(archive.os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack(folder, tmp_path / "a.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.xz", "campaign"]


LAYOUT = "is none of campaign.json, summary.md, tiles/*.json"
HIDDEN = "its name is none of a campaign's (empty, hidden or unprintable part)"
LONG = "its name has a part of more than 255 bytes"


@pytest.mark.parametrize(
    ("member", "told"),
    [
        (regular("/etc/passwd"), "its name starts at the root"),
        (regular("//campaign.json"), "its name starts at the root"),
        (regular("../out.json"), "its name leads out of the folder (..)"),
        (regular("records/../../out.json"), "its name leads out of the folder (..)"),
        (regular("logs/.."), "its name leads out of the folder (..)"),
        (regular("records/a/../b/c.json"), "its name leads out of the folder (..)"),
        (special("logs/a", tarfile.SYMTYPE, "/etc/passwd"), "is a symbolic link, not a file"),
        (special("records", tarfile.SYMTYPE, "/tmp"), "is a symbolic link, not a file"),
        (special("logs/a", tarfile.LNKTYPE, "campaign.json"), "is a hard link, not a file"),
        (special("logs/a", tarfile.CHRTYPE), "is a character device, not a file"),
        (special("logs/a", tarfile.BLKTYPE), "is a block device, not a file"),
        (special("logs/a", tarfile.FIFOTYPE), "is a fifo, not a file"),
        (special("logs/a", tarfile.CONTTYPE), "is of kind b'7', not a file"),
        (special("logs/a", b"Z"), "is of kind b'Z', not a file"),
        (special("/tmp/folder", tarfile.DIRTYPE), "its name starts at the root"),
        (special("records/../x", tarfile.DIRTYPE), "its name leads out of the folder (..)"),
        (special("elsewhere", tarfile.DIRTYPE), LAYOUT),
        (regular("other.json"), LAYOUT),
        (regular("campaign.json/x"), LAYOUT),
        (regular("records/m/e.json"), LAYOUT),
        (regular("records/m/e/f/c.json"), LAYOUT),
        (regular("records/m/e/c.txt"), LAYOUT),
        (regular("logs/a/b"), LAYOUT),
        (regular("tiles/a.py"), LAYOUT),
        (regular("Logs/a"), LAYOUT),
        (regular("logs//a"), HIDDEN),
        (regular("logs/"), HIDDEN),
        (regular("records/m/e/.hidden.json"), HIDDEN),
        (regular("logs/a\nb"), HIDDEN),
        (regular("logs/\x1b[2J"), HIDDEN),
        (regular("logs/a\u202eb"), HIDDEN),
        (regular("logs\\a"), HIDDEN),
        (regular("logs/" + "x" * 256), LONG),
        (regular("logs/" + "é" * 128), LONG),
        (regular("logs/\udcff"), "its name is not UTF-8"),
        (regular("campaign.json", b"again"), "is in the archive twice: the first is taken"),
        (regular("./campaign.json"), "is in the archive twice: the first is taken"),
        (regular("logs/CAMPAIGN.log"), "differs only in case or accents' form from"),
        (regular("logs/big", bytes(MAX_MEMBER + 1)), "has 4,194,305 bytes, more than the 4,194,"),
    ],
)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_what_is_hostile_is_refused_by_name_and_the_rest_kept(tmp_path, member, told, format):
    before, after = GOOD.items(), [("logs/after", b"after")]
    members = [*(regular(*one) for one in before), member, *(regular(*one) for one in after)]
    files, refused = unpacked(tmp_path, tar_of(*members, format=format))
    assert files == GOOD | {"logs/after": b"after"}
    ((name, reason),) = refused
    assert reason.startswith(told) and name.isprintable()
    if "\udcff" not in member[0].name:
        assert name == archive.shown(member[0].name.removeprefix("./"))


def test_names_in_two_forms_of_one_accent(tmp_path):
    one, other = ("logs/" + unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    files, refused = unpacked(tmp_path, tar_of(regular(one, b"1"), regular(other, b"2")))
    assert files == {one: b"1"}
    assert refused == [(other, f"differs only in case or accents' form from {one}")]


def test_folders_as_tar_writes_them_are_no_matter(tmp_path):
    folders = [".", "./records", "./records/m/", "./records/m/e", "logs/"]
    members = [special(name, tarfile.DIRTYPE) for name in folders] + [regular("./logs/a", b"a")]
    assert unpacked(tmp_path, tar_of(*members)) == ({"logs/a": b"a"}, [])


def raw(name, size, kind=b"0", data=b"", **fields):
    """A header as it is written, with a size that need not be that of `data`."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def resealed(header):
    """`header` with its checksum made right."""
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


END = bytes(1024)
FIRST = raw("campaign.json", 2, data=b"{}")
LAST = raw("logs/last", 4, data=b"last")


def test_an_extended_header_is_not_taken_into_memory(tmp_path):
    size = 8 * 2**20
    giant = raw("pax", size, b"x", b"%d path=" % size + b"a" * (size - 14) + b"\n")
    long = raw("././@LongLink", size, b"L", bytes(size))
    data = FIRST + giant + raw("logs/a", 1, data=b"a") + long + raw("logs/b", 1, data=b"b") + LAST
    files, refused = unpacked(tmp_path, data + END)
    assert files == {"campaign.json": b"{}", "logs/last": b"last"}
    assert [name for name, _ in refused] == ["logs/a", "logs/b"]
    assert {reason for _, reason in refused} == {"has an extended header of 8,388,608 bytes"}


def test_headers_for_all_and_sparse_files_are_refused(tmp_path):
    every = raw("pax_global", 30, b"g", b"30 path=/etc/passwd".ljust(29) + b"\n")
    old = bytearray(raw("logs/old", 512, b"S"))
    old[482] = 1
    old = resealed(bytes(old)) + bytes(504) + b"\1" + bytes(7) + bytes(512) + bytes(512)
    record = b"22 GNU.sparse.major=1\n"
    new = raw("pax", len(record), b"x", record) + raw("logs/new", 1, data=b"n")
    files, refused = unpacked(tmp_path, FIRST + every + old + new + LAST + END)
    assert files == {"campaign.json": b"{}", "logs/last": b"last"}
    assert refused == [
        ("pax_global", "is a header for all members, not a file"),
        ("logs/old", "is a sparse file, not a file"),
        ("logs/new", "is a sparse file, not a file"),
    ]


PAX_LIE = b"19 size=9999999999\n"


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (raw("logs/a", 3 * 2**20, data=b"short"), "is cut short"),
        (raw("logs/a", 10**12, data=b"short"), "is cut short"),
        (raw("logs/a", 2**80, data=b"short"), "is cut short"),
        (raw("logs/a", 1, data=b"x" * 2000), "is damaged, or no tar archive"),
        (raw("pax", 19, b"x", PAX_LIE) + raw("logs/a", 1, data=b"a"), "is cut short"),
        (raw("pax", 11, b"x", b"11 size=-1\n"), "an extended header's number is none"),
        (raw("pax", 9, b"x", b"0 a=b   \n"), "an extended header's fields do not fit"),
        (raw("pax", 9, b"x", b"99 path=\n"), "an extended header's fields do not fit"),
        (raw("pax", 9, b"x", b"path path"), "an extended header's number is none"),
        (
            resealed(raw("logs/a", 1)[:124] + b"\xff" * 12 + raw("logs/a", 1)[136:]),
            "number is none",
        ),
        (resealed(raw("logs/a", 1)[:124] + b"12x45678901\0" + bytes(376)), "number is none"),
        (b"\1" * 512, "header's number is none"),
    ],
)
def test_sizes_that_lie_end_it_and_what_came_before_is_kept(tmp_path, lie, told):
    files, refused = unpacked(tmp_path, FIRST + lie + LAST + END)
    assert files.pop("logs/a", b"x") == b"x" and files == {"campaign.json": b"{}"}
    assert [name for name, _ in refused if name != "logs/a"] == ["hostile.tar.xz"]
    assert told in refused[-1][1]


def test_a_bomb_stops_at_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_TOTAL", 2**20)
    fill = [raw(f"logs/{n}", 2**18, data=bytes(2**18)) for n in range(8)]
    files, refused = unpacked(tmp_path, FIRST + b"".join(fill) + END)
    assert set(files) == {"campaign.json", "logs/0", "logs/1", "logs/2"}
    assert refused == [
        ("hostile.tar.xz", "unpacks to more than the 1,048,576 bytes that it may have")
    ]


def test_a_bomb_behind_the_end_of_the_archive_stops_at_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_TOTAL", 2**20)
    files, refused = unpacked(tmp_path, FIRST + END + bytes(2**21))
    assert files == {"campaign.json": b"{}"}
    assert refused[0][1].startswith("unpacks to more than the 1,048,576 bytes")


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    files, refused = unpacked(tmp_path, b"".join(raw(f"logs/{n}", 0) for n in range(11)) + END)
    assert set(files) == {f"logs/{n}" for n in range(10)}
    assert refused == [("hostile.tar.xz", "has more than the 10 members that an archive may have")]


def test_xz_that_asks_for_much_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1536 * 2**20}]
    made = bytearray(lzma.compress(FIRST + END, filters=[{**filters[0], "dict_size": 2**20}]))
    # The block's header: its dictionary size, and a checksum of its own.
    place = made.index(bytes([0x21, 0x01]), 12) + 2
    made[place] = 40
    made[20:24] = zlib.crc32(bytes(made[12:20])).to_bytes(4, "little")
    (tmp_path / "a.tar.xz").write_bytes(made)
    (refused,) = unpack(tmp_path / "a.tar.xz", tmp_path / "into")
    assert "Memory usage limit exceeded" in refused.reason


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is no .tar.xz archive"),
        (b"{}", "is no .tar.xz archive"),
        (b"\xfd7zXZ\0", "is cut short"),
        (lzma.compress(b""), "is cut short"),
        (lzma.compress(b"text of more than one block " * 99), "no tar archive"),
        (lzma.compress(FIRST + END, format=lzma.FORMAT_ALONE), "is no .tar.xz archive"),
        (FIRST + END, "is no .tar.xz archive"),
    ],
)
def test_a_file_that_is_no_archive(tmp_path, data, told):
    files, refused = unpacked(tmp_path, data, compress=bytes)
    assert files == {} and refused[0][0] == "hostile.tar.xz" and told in refused[0][1]
    assert len(refused) == 1


def test_no_file_and_no_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "absent", tmp_path / "into")
    assert not (tmp_path / "into").exists()
    write(tmp_path, {"a.tar.xz": lzma.compress(FIRST + END), "into/x": b""})
    with pytest.raises(ArchiveError, match="into: expected an empty folder"):
        unpack(tmp_path / "a.tar.xz", tmp_path / "into")


def test_streams_that_follow_one_another_and_what_follows_the_end(tmp_path):
    whole, in_two = FIRST + LAST + END, lzma.compress(FIRST) + bytes(8) + lzma.compress(LAST + END)
    expected = {"campaign.json": b"{}", "logs/last": b"last"}
    assert unpacked(tmp_path, in_two, compress=bytes) == (expected, [])
    (tmp_path / "b").mkdir()
    files, refused = unpacked(tmp_path / "b", whole + whole)
    assert files == expected
    assert refused == [("hostile.tar.xz", "goes on after its end: what stands there is left out")]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A campaign of 30 records, its files and the bytes of its archive."""
    rng, folder = random.Random(1), tmp_path_factory.mktemp("packed")
    files = {"campaign.json": b"{}", "summary.md": b"# all", "logs/a": rng.randbytes(3000)}
    for number in range(30):
        name = f"records/m/e/{'case' * 40}-{number:02}.json"
        files[name] = rng.randbytes(rng.randrange(4000)) + b"end"
    pack(write(folder / "campaign", files), folder / "a.tar.xz")
    return files, (folder / "a.tar.xz").read_bytes()


@given(st.data())
def test_cut_anywhere_it_keeps_whole_files_and_names_the_break(tmp_path_factory, packed, data):
    files, whole = packed
    at = data.draw(st.integers(0, len(whole) - 1))
    found, refused = unpacked(tmp_path_factory.mktemp("cut"), whole[:at], compress=bytes)
    assert [name for name, _ in refused] == ["hostile.tar.xz"]
    assert refused[0][1] == ("is cut short" if at > 5 else "is no .tar.xz archive")
    assert found.items() <= files.items()
    # A byte of noise packs to one: at most a file and xz's own block are missing.
    assert sum(map(len, found.values())) >= at - 70_000 and (at < 75_000 or found)


@given(st.data())
def test_damaged_anywhere_it_is_noticed_and_nothing_else_is_raised(tmp_path_factory, packed, data):
    files, whole = packed
    damaged = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, unique=True)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    found, refused = unpacked(tmp_path_factory.mktemp("damaged"), damaged, compress=bytes)
    assert "hostile.tar.xz" in [name for name, _ in refused]
    assert found.items() <= files.items()


@given(st.data())
def test_tars_of_garbage_raise_nothing_and_write_only_inside(tmp_path_factory, data):
    blocks = st.one_of(
        st.just(FIRST),
        st.builds(
            lambda name, size, kind, body: raw(name, size, kind, body),
            st.sampled_from(["logs/a", "../a", "/a", "records/m/e/c.json", "records", "pax"]),
            st.integers(0, 3000),
            st.sampled_from([b"0", b"\0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"?"]),
            st.binary(max_size=1500),
        ),
        st.binary(min_size=512, max_size=512),
        st.builds(resealed, st.binary(min_size=512, max_size=512)),
    )
    made = b"".join(data.draw(st.lists(blocks, max_size=12))) + END
    found, refused = unpacked(tmp_path_factory.mktemp("garbage"), made)
    assert set(found) <= {"campaign.json", "logs/a", "records/m/e/c.json"} or refused


def test_a_member_that_is_not_what_its_header_states_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_stream, "comment", lambda data: "sha256:" + "0" * 64)
    pack(write(tmp_path / "campaign", {"campaign.json": b"{}"}), tmp_path / "a.tar.xz")
    (refused,) = unpack(tmp_path / "a.tar.xz", tmp_path / "into")
    assert refused.name == "campaign.json" and refused.reason.startswith("is damaged: its SHA-256")
    assert read(tmp_path / "into") == {}


def test_members_are_read_one_at_a_time(tmp_path):
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(FIRST + LAST + END))
    found = tar_stream.members(tmp_path / "a.tar.xz", count=9, each=9, total=9999)
    assert next(found) == tar_stream.Member(b"campaign.json", False, None, b"{}")
    assert [member.data for member in found] == [b"last"]
