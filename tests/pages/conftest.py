"""A real browser for the pages: `browser`, skipped where there is none.

With ATTENTION_BROWSER=required in the environment, as in CI, there must be one.
"""

import os

import pytest

from tests.pages import webdriver


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium without any network; see `tests.pages.webdriver.Browser`."""
    reason = webdriver.missing()
    if reason is not None:
        if os.environ.get("ATTENTION_BROWSER") == "required":
            pytest.fail(f"ATTENTION_BROWSER=required, but there is {reason}")
        pytest.skip(f"{reason}: a page needs a browser to be tested")
    window = webdriver.Browser(tmp_path_factory.mktemp("profile"))
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    window.devtools("Network.enable", {})
    window.devtools("Network.emulateNetworkConditions", offline)
    yield window
    window.close()
