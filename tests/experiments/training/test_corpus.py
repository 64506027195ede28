"""The corpus: which files are in it, in which part, and that a hash tells two apart."""

import hashlib
import sys

import numpy as np
import pytest

from experiments.training import corpus as module
from experiments.training.corpus import Origin, corpus, gather, is_text

MIB = 1 << 20


@pytest.fixture(scope="module")
def python():
    return corpus()


def _write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Origin("some", "1.0", "MIT", folder)


def _gather(*origins, train_bytes=MIB, validation_bytes=MIB):
    return gather("own", origins, train_bytes=train_bytes, validation_bytes=validation_bytes)


def _files(text):
    """The files of a part, by the zero byte before each."""
    first, *files = text.tobytes().split(b"\0")
    assert first == b""
    return files


@pytest.fixture
def many(tmp_path):
    """300 files of a few words each."""
    return _write(
        tmp_path,
        {
            f"m{i // 50}/f{i}.py": b"some words, and then %d more of them\n" % i * 3
            for i in range(300)
        },
    )


def test_the_default_corpus_has_its_sizes_and_says_what_is_in_it(python):
    assert (len(python.train), len(python.validation)) == (8 * MIB, MIB)
    said = python.description
    assert [one["name"] for one in said["packages"]] == [
        "stdlib",
        "networkx",
        "numpy",
        "sympy",
        "torch",
    ]
    assert sum(one["bytes"] for one in said["packages"]) == 9 * MIB
    licences = {one["name"]: one["licence"] for one in said["packages"]}
    assert licences["stdlib"] == "PSF-2.0"
    assert all("BSD" in licences[name] for name in ("networkx", "numpy", "sympy", "torch"))
    assert all(one["files"] > 10 and one["version"][0].isdigit() for one in said["packages"])


def test_the_default_corpus_is_text_with_one_zero_byte_a_file(python):
    files = sum(one["files"] for one in python.packages)
    assert np.sum(python.train == 0) + np.sum(python.validation == 0) == files
    for text in (python.train, python.validation):
        assert text[0] == 0
        share = np.bincount(text, minlength=256) / len(text)
        assert share[128:].sum() < 0.005
        assert 0.1 < share[ord(" ")] < 0.4
        assert share[ord("e")] > share[ord("0") : ord("9") + 1].max()


def test_reading_again_gives_the_same_and_fewer_bytes_another_hash(python):
    again = corpus()
    assert again.sha256 == python.sha256
    assert np.array_equal(again.train, python.train)
    small = corpus(train_bytes=MIB, validation_bytes=MIB)
    assert small.sha256 != python.sha256
    assert np.array_equal(small.train, python.train[:MIB])
    assert np.array_equal(small.validation, python.validation)


def test_no_file_is_in_both_parts_nor_twice(python):
    train, validation = _files(python.train), _files(python.validation)
    assert len(set(train)) == len(train) and len(set(validation)) == len(validation)
    assert not set(train) & set(validation)


def test_every_file_lies_in_the_part_that_its_name_says(many):
    read = _gather(many)
    for text, is_validation in ((read.train, False), (read.validation, True)):
        for content in _files(text):
            i = int(content.split()[4])
            key = hashlib.sha256(f"some/m{i // 50}/f{i}.py".encode()).digest()[0]
            assert (key < 26) == is_validation
    assert len(_files(read.train)) + len(_files(read.validation)) == 300
    # 300 * 26 / 256 = 30.5, give or take 5.2.
    assert 15 <= len(_files(read.validation)) <= 46


def test_a_new_file_changes_the_hash_and_leaves_the_others_in_place(many):
    before = _gather(many)
    (many.folder / "new.py").write_bytes(b"something else\n")
    after = _gather(many)
    assert after.sha256 != before.sha256
    kept = [one for one in _files(after.train) if one != b"something else\n"]
    assert kept == [one for one in _files(before.train) if one != b"something else\n"]


def test_the_hash_follows_names_and_contents_alone(many, tmp_path):
    first = _gather(many)
    elsewhere = tmp_path / "elsewhere"
    many.folder.joinpath("m0").rename(elsewhere)
    moved = _gather(many)
    assert moved.sha256 != first.sha256
    elsewhere.rename(many.folder / "m0")
    assert _gather(many).sha256 == first.sha256
    (many.folder / "m0/f0.py").write_bytes(b"other\n")
    assert _gather(many).sha256 != first.sha256


def test_the_hash_is_over_sorted_lines_of_part_name_and_content(many):
    read = _gather(many)
    parts = {one: "train" for one in _files(read.train)}
    parts |= {one: "validation" for one in _files(read.validation)}
    lines = []
    for path in many.folder.rglob("*.py"):
        name = f"some/{path.parent.name}/{path.name}"
        content = path.read_bytes()
        sha = hashlib.sha256(b"\0" + content).hexdigest()
        lines.append(f"{parts[content]}\t{name}\t{sha}\n")
    assert len(lines) == 300
    assert read.sha256 == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_the_last_file_is_cut_at_the_size(many):
    whole = _gather(many)
    cut = _gather(many, train_bytes=1001, validation_bytes=101)
    assert (len(cut.train), len(cut.validation)) == (1001, 101)
    assert np.array_equal(cut.train, whole.train[:1001])
    assert sum(one["bytes"] for one in cut.packages) == 1102


def test_equal_files_are_taken_once(tmp_path):
    origin = _write(tmp_path, {f"f{i}.py": b"the same\n" for i in range(100)})
    (tmp_path / "other.py").write_bytes(b"another\n")
    with pytest.raises(ValueError, match="expected a file of text for validation"):
        _gather(origin)
    for i in range(100):
        (tmp_path / f"g{i}.py").write_bytes(b"words of my own, %d\n" % i)
    read = _gather(origin)
    assert sorted(_files(read.train) + _files(read.validation)) == sorted(
        [b"the same\n", b"another\n"] + [b"words of my own, %d\n" % i for i in range(100)]
    )


def test_only_python_files_outside_folders_of_tests_count(tmp_path):
    words = {f"f{i}.py": b"words and more words: %d\n" % i for i in range(60)}
    others = ("tests/a.py", "sub/test/b.py", "testing/c.py", "__pycache__/d.py", "e.txt", "f.pyc")
    origin = _write(tmp_path, words | {name: b"left out\n" for name in others})
    read = _gather(origin)
    assert sorted(_files(read.train) + _files(read.validation)) == sorted(words.values())


def test_of_a_shared_folder_only_the_modules_named_count(tmp_path):
    inside = {f"own/f{i}.py": b"words and more words: %d\n" % i for i in range(60)} | {
        "one.py": b"module\n"
    }
    others = ("two.py", "site-packages/own/x.py", "alien/own.py")
    folder = _write(tmp_path, inside | {name: b"left out\n" for name in others}).folder
    read = _gather(Origin("some", "1", "MIT", folder, frozenset({"own", "one"})))
    assert sorted(_files(read.train) + _files(read.validation)) == sorted(inside.values())


@pytest.mark.parametrize(
    ("content", "counts"),
    [
        (b"def f(x):\n    return x\n", True),
        ("# Zwölf Boxkämpfer\nx = 'größer'\ny = 1\n".encode(), False),
        (b"# Twelve boxers, all of them\n" * 3 + "# größer\n".encode(), True),
        (b"", False),
        (b"  \n\n", False),
        (b"x = 'a\0b'\n", False),
        (b"# caf\xe9 and thirty further bytes, so that the share is low\n", False),
        (b"words " * 40_000, True),
        (b"words " * 50_000, False),
        (b"x" * 90 + b"7" * 10, True),
        (b"x" * 89 + b"7" * 11, False),
        (b"# Autogenerated by Sphinx on Monday\ntopics = 'words'\n", False),
        (b"x = 'word'\n" * 100 + b"# Autogenerated\n", True),
    ],
)
def test_what_is_text(content, counts):
    assert is_text(content) is counts


def test_an_absent_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(module.CORPORA, "python", ("stdlib", "no_such_package"))
    with pytest.raises(ModuleNotFoundError, match="pip install no_such_package") as caught:
        corpus()
    assert caught.value.name == "no_such_package"


def test_a_package_is_found_without_importing_it():
    assert "networkx" in module.CORPORA["python"]
    before = set(sys.modules)
    corpus(train_bytes=1000, validation_bytes=1000)
    assert not {"networkx", "sympy"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    "metadata, licence",
    [
        ("License-Expression: MIT\nLicense: other", "MIT"),
        ("Classifier: License :: OSI Approved :: BSD License\nLicense: Copyright", "BSD License"),
        ("License: Some words\n        and more", "Some words"),
        ("Name: nothing", "not stated"),
    ],
)
def test_licences_are_read_off_the_metadata(metadata, licence):
    from email import message_from_string

    assert module._licence(message_from_string(metadata)) == licence


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="name='english': expected one of python"):
        corpus("english")
    with pytest.raises(ValueError, match="train_bytes=0: expected an integer >= 1"):
        corpus(train_bytes=0)
    with pytest.raises(ValueError, match="validation_bytes=1.5"):
        corpus(validation_bytes=1.5)
