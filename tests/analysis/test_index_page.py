"""The first page of a build leads to everything in it; its archive holds the data."""

import hashlib
import re
import shutil
import zipfile

import pytest

from analysis.pages import index_page
from analysis.selection.published import EXPERIMENTS


@pytest.fixture
def whole(build, tmp_path):
    """The synthetic build with one notebook, write-up, caption and page."""
    folder = tmp_path / "build"
    shutil.copytree(build, folder, symlinks=False)
    for name in ("notebooks/ring.html", "writeups/ring.md", "ledger.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("there")
    caption = folder / "captions" / "figures" / "ring-time.rst"
    caption.parent.mkdir(parents=True)
    caption.write_text("**Time <1 s & more**\n\nThe text.\n\nMade by a notebook.\n")
    return folder


def test_every_link_leads_to_a_file_and_every_figure_is_shown(whole, laptop_root):
    out = whole / "index.html"
    assert index_page.main(["--build", str(whole), "--out", str(out), str(laptop_root)]) == 0
    text = out.read_text()
    links = set(re.findall(r'(?:href|src)="([^"#:]+)"', text))
    assert [one for one in sorted(links) if not (whole / one).is_file()] == []
    shown = re.findall(r'<img src="figures/([\w-]+)\.svg"', text)
    assert shown == sorted(path.stem for path in whole.glob("figures/*.svg"))
    assert {"ledger.html", "notebooks/ring.html", "writeups/ring.md", "downloads.zip"} <= links
    assert "paper.pdf" not in links  # this build has none
    tables = {link for link in links if link.startswith("tables/ring-")}
    assert tables == {f"tables/{path.name}" for path in whole.glob("tables/ring-*.md")}
    assert "Time &lt;1 s &amp; more" in text and "The text." not in text


def test_the_archive_holds_records_tables_and_figures_and_is_the_same_twice(
    whole, laptop_root, tmp_path
):
    digests = set()
    for name in ("a", "b"):
        out = tmp_path / name / "index.html"
        assert index_page.main(["--build", str(whole), "--out", str(out), str(laptop_root)]) == 0
        digests.add(hashlib.sha256(out.with_name("downloads.zip").read_bytes()).hexdigest())
    assert len(digests) == 1
    with zipfile.ZipFile(out.with_name("downloads.zip")) as made:
        names = made.namelist()
        assert made.read("claims.csv" if "claims.csv" in names else "claims.json")
    records = [name for name in names if "/published/" in name]
    assert len(records) == len(list(laptop_root.rglob("*.json")))
    assert not any(name.startswith("/") or ".." in name for name in names)
    for experiment in EXPERIMENTS:
        assert {f"tables/{p.name}" for p in whole.glob(f"tables/{experiment}-*")} <= {*names}
    size = out.with_name("downloads.zip").stat().st_size
    assert f"{size / 1e6:.1f} MB" in out.read_text()


def test_an_empty_folder_is_refused_and_nothing_is_written(tmp_path, capsys):
    out = tmp_path / "index.html"
    assert index_page.main(["--build", str(tmp_path), "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"index page: {tmp_path}: nothing is built there\n"
    assert not any(tmp_path.iterdir())
