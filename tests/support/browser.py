"""A real browser for tests: Chromium without a window, driven through chromedriver's WebDriver protocol.

The protocol is JSON over HTTP (https://www.w3.org/TR/webdriver2/), so the standard library is enough.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-dev-shm-usage hide-scrollbars"
)
KEYS = {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}
KEYS |= {"PageUp": "\ue00e", "PageDown": "\ue00f", "Tab": "\ue004", "Space": " "}


class Browser:
    """One window; every page that it opens is checked for errors by `close`."""

    def __init__(self, port: int, profile: Path, binary: str):
        self.base = f"http://127.0.0.1:{port}"
        arguments = [*(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={profile}"]
        options = {"args": arguments, "binary": binary}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "SEVERE"}}}
        self.base += "/session/" + self.call("POST", "/session", capabilities=capabilities)["sessionId"]

    def call(self, method: str, path: str, **body: Any) -> Any:
        """Send one command; return its value. Raises urllib's HTTPError where the browser refuses."""
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, page: Path | str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Show a page in a window of this size, with the reader's preference for light or dark."""
        self.width = width
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.cdp("Emulation.setEmulatedMedia", features=scheme)
        self.call("POST", "/url", url="about:blank")  # so that another #fragment loads the page anew
        self.call("POST", "/url", url=str(page) if "://" in str(page) else Path(page).absolute().as_uri())

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def script(self, code: str) -> Any:
        """Run JavaScript in the page; return what it returns."""
        return self.call("POST", "/execute/sync", script=code, args=[])

    def element(self, selector: str) -> str:
        (reference,) = self.call("POST", "/element", using="css selector", value=selector).values()
        return reference

    def click(self, selector: str) -> None:
        self.call("POST", f"/element/{self.element(selector)}/click")

    def hover(self, selector: str) -> None:
        """Move the mouse over an element."""
        origin = {"element-6066-11e4-a52e-4f735466cecf": self.element(selector)}
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin}
        self.call("POST", "/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

    def tap(self, selector: str) -> None:
        """Touch an element, as a finger does."""
        origin = {"element-6066-11e4-a52e-4f735466cecf": self.element(selector)}
        middle = "{block: 'center', inline: 'center'}"
        self.script(f"document.querySelector({json.dumps(selector)}).scrollIntoView({middle})")
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin}
        actions = [move, {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        finger = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}, "actions": actions}
        self.call("POST", "/actions", actions=[finger])

    def press(self, *keys: str) -> None:
        """Press and release keys, one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def text(self, selector: str) -> str:
        return self.script(f"return document.querySelector({json.dumps(selector)}).textContent")

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.script("return document.documentElement.scrollWidth") - self.width

    def errors(self) -> list[str]:
        """What the page has written to the console as errors."""
        return [entry["message"] for entry in self.call("POST", "/se/log", type="browser")]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser with its profile in `folder`; skip the test where there is none."""
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("no browser: needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "chromedriver.log").open("wb")
    environment = os.environ | {"HOME": str(folder)}
    process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log, env=environment)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        window = Browser(port, folder / "profile", binary)
        try:
            yield window
        finally:
            window.call("DELETE", "")
    finally:
        process.terminate()
        process.wait(timeout=10)
        log.close()
