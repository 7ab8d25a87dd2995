"""The documentation as a site, in Debian's Chromium: links, search, a phone, dark mode."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from harness.base.version import PACKAGE
from tests.reporting.test_browser import PHONE
from tests.reporting.test_browser import browser as browser

pytestmark = pytest.mark.browser
ROOT = PACKAGE.parent
SITE = ROOT / "build" / "site"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the built site."""
    subprocess.run(["make", "docs"], cwd=ROOT, check=True, capture_output=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_links_of_every_page_lead_somewhere(site: str) -> None:
    pages = sorted(SITE.glob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for link in re.findall(r'href="([^"#]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:|/", link):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: str) -> None:
    for page in SITE.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert (
            re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)|<link[^>]+stylesheet[^>]+(https?:)', text) == []
        )


def test_search_finds_a_page(site: str, browser: Chrome) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1280, 900)
    browser.get(f"{site}/index.html")
    browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    browser.find_element(By.CSS_SELECTOR, "input[name=query]").send_keys("placebo")
    found = WebDriverWait(browser, 20).until(lambda one: one.find_elements(By.CSS_SELECTOR, ".md-search-result__link"))
    assert any("mining" in (link.get_attribute("href") or "") for link in found)


@pytest.mark.parametrize("page", ["index", "tutorial", "specs", "troubleshooting"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(site: str, browser: Chrome, page: str, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": PHONE, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(f"{site}/{page}.html")
    browser.execute_script("localStorage.clear()")  # the scheme of the visit before
    browser.refresh()
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= PHONE
    chosen = browser.execute_script("return document.body.getAttribute('data-md-color-scheme')")
    assert chosen == ("slate" if scheme == "dark" else "default")
