"""Headless Chromium for tests of pages; without it, or without selenium, these tests are skipped."""

import contextlib
import json
import shutil
from collections.abc import Iterator

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextlib.contextmanager
def started() -> Iterator[webdriver.Chrome]:
    """A browser that reaches this machine only, inside `with`."""
    binary, driver = next(filter(None, map(shutil.which, NAMES)), None), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs a browser and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-gpu",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


def show(browser: webdriver.Chrome, url: str, width: int, theme: str = "light") -> None:
    """Load a page with a width and a theme, and clear the logs."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(url)


def requests(browser: webdriver.Chrome) -> set[str]:
    """The URLs requested since the page was loaded."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


def wait(browser: webdriver.Chrome, script: str, seconds: float = 120) -> None:
    """Wait until the value of an expression of JavaScript is true."""
    WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda each: each.execute_script(f"return {script}"))


__all__ = ["By", "Keys", "requests", "show", "started", "wait"]
