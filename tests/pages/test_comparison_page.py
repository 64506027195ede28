"""The page of machines side by side in a real browser: it fits, and folds without a script."""

import pytest

from analysis.comparison import report
from analysis.pages import comparison_page
from tests.analysis import synthetic, two_machines
from tests.analysis.two_machines import copied


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    one = synthetic.write(folder / "a" / "local", "backends") / synthetic.CPU
    two = copied(one, folder / "b", two_machines.OTHER, lambda of: two_machines.slower(of, 0.5))
    found = report.compare(one, two)
    comparison_page.save([found], folder / "compare.html")
    return (folder / "compare.html").as_uri(), found


@pytest.mark.parametrize("width", [1280, 500, 390])
def test_it_fits_its_window_with_everything_open(browser, page, width):
    browser.resize(width, 900)
    browser.open(page[0])
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    widths = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    browser.devtools("Emulation.clearDeviceMetricsOverride", {})
    assert widths[0] <= widths[1]


def test_cases_fold_under_their_systems_and_the_figure_is_drawn(browser, page):
    address, found = page
    browser.open(address)
    visible = (
        "return [...document.querySelectorAll('.cases tbody tr')].filter(o => o.checkVisibility())"
    )
    assert browser.run(f"{visible}.length") == 0
    browser.run("document.querySelector('details').open = true")
    first = next(one for one in found.means if one.system)
    assert browser.run(f"{visible}.map(o => o.lastElementChild.textContent)") == [
        report.ratio_text(one.ratio) for one in first.pairs
    ]
    browser.run("return document.querySelector('img').decode()")
    assert browser.run("return document.querySelector('img').naturalWidth") > 300
