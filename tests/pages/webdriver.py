"""A headless Chromium by plain WebDriver (W3C) over chromedriver: all that page tests need."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--force-device-scale-factor=1", "--hide-scrollbars"),
    # No name resolves: what a page would fetch fails, besides being seen.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
START_S = 20


def missing() -> str | None:
    """Why there is no browser here, or None."""
    lost = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(lost)} on PATH" if lost else None


class Browser:
    """One window. `profile`: an empty folder for its user data."""

    def __init__(self, profile: Path):
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with ExitStack() as on_failure:
            on_failure.callback(self._driver.kill)
            self._root = f"http://127.0.0.1:{self._port()}/session"
            options = {
                "binary": shutil.which("chromium"),
                "args": [*FLAGS, f"--user-data-dir={profile}"],
            }
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            made = self._send("POST", "", {"capabilities": {"alwaysMatch": wanted}})
            self._root += f"/{made['sessionId']}"
            on_failure.pop_all()

    def close(self) -> None:
        """End the window and its driver."""
        try:
            self._send("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(10)

    def open(self, address: str) -> None:
        """Load `address` and wait for it."""
        self._send("POST", "/url", {"url": address})

    def run(self, script: str, *arguments):
        """The value of a script's `return`; its error is raised here."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, selector: str, keys: str) -> None:
        """Type `keys` into the first element that `selector` finds."""
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        self._send("POST", f"/element/{found[ELEMENT]}/value", {"text": keys})

    def resize(self, width: int, height: int) -> None:
        """Lay the page out at exactly this size, as a phone would."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)

    def devtools(self, command: str, parameters: dict):
        """Chromium's own protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def logs(self, kind: str) -> list[dict]:
        """What was logged since the last call: "browser" (console) or "performance"."""
        return self._send("POST", "/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        entries = (json.loads(entry["message"])["message"] for entry in self.logs("performance"))
        return [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.devtools("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def _port(self) -> int:
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                return int(line.rstrip(".\n ").rsplit(" ", 1)[1])
        raise RuntimeError("chromedriver ended before it was ready")

    def _send(self, method: str, path: str, body: dict | None = None):
        data = None if method == "DELETE" else json.dumps(body or {}).encode()
        request = Request(self._root + path, data, {"Content-Type": "application/json"})
        request.method = method
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urlopen(request, timeout=60) as answer:
                    return json.load(answer)["value"]
            except HTTPError as error:
                found = json.load(error)["value"]
                raise RuntimeError(f"{found['error']}: {found['message']}") from None
            except URLError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
