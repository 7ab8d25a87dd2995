"""The page in Debian's Chromium, as a reader opens it from disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from harness.reporting import collect, render
from harness.runs.gallery import write_gallery
from harness.runs.store import Store
from tests.reporting.made import LEVELS, QUICKSTART, fail, fill, plan_of
from tests.reporting.test_escaping import NASTY
from tests.reporting.test_gallery import gallery

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE, DESKTOP = 390, 1280
WIDER = """
const scrolls = node => node && (['auto', 'scroll'].includes(getComputedStyle(node).overflowX)
    || scrolls(node.parentElement));
return [...document.querySelectorAll('body *')]
    .filter(node => node.getBoundingClientRect().right > innerWidth + 1 && !node.closest('svg') && !scrolls(node))
    .map(node => node.outerHTML.slice(0, 100));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: missing runs, claims, figures, mined captions, and text that attacks it."""
    labels = {**QUICKSTART["labels"], "sampled": NASTY}  # type: ignore[dict-item]
    plan = plan_of({**QUICKSTART, "labels": labels, "notes": NASTY})
    store = Store(tmp_path_factory.mktemp("store"))
    fill(plan, store, LEVELS, skip=[("fff", 2), ("raw_mined", 1)])
    fail(store, plan.cells["fff", 2], "crashed", NASTY)
    write_gallery(store.run(plan.cells["fff", 0]).gallery, gallery(f"{NASTY} {'x' * 90}"))
    file = tmp_path_factory.mktemp("report") / "quickstart.html"
    file.write_text(render(collect(plan, store), "html"), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = Options()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary, "apt-get install chromium"
    assert driver, "apt-get install chromium-driver"
    options.binary_location = binary
    with Chrome(options=options, service=Service(driver)) as chrome:
        yield chrome


def show(browser: Chrome, page: Path, width: int = DESKTOP, scheme: str = "light", *, unfolded: bool = True) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    if unfolded:
        browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")


def logged(browser: Chrome, kind: str) -> list[dict[str, Any]]:
    """Entries since the last call."""
    return list(browser.get_log(kind))  # type: ignore[no-untyped-call]


def requested(browser: Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in logged(browser, "performance")]
    sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [message["params"]["request"]["url"] for message in sent]


def colour(browser: Chrome, selector: str, name: str) -> Any:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return browser.execute_script(script, selector, name)


def test_the_page_is_silent_and_asks_the_network_for_nothing(browser: Chrome, page: Path) -> None:
    logged(browser, "performance")
    logged(browser, "browser")
    show(browser, page)
    assert browser.find_element(By.TAG_NAME, "h1").text == QUICKSTART["question"]
    assert logged(browser, "browser") == []
    asked = requested(browser)
    assert page.as_uri() in asked
    assert [url for url in asked if url != page.as_uri() and not url.startswith("data:")] == []


def test_a_script_in_a_label_is_read_and_not_run(browser: Chrome, page: Path) -> None:
    show(browser, page)
    assert browser.find_elements(By.TAG_NAME, "script") == []
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "th[scope=row]")]
    assert any("<script>alert('x')</script>" in row for row in rows)


def bottom(browser: Chrome, selector: str) -> float:
    script = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    return float(browser.execute_script(script, selector))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "verdicts"), [(PHONE, 1), (DESKTOP, 3)])
def test_the_first_screen_has_question_answer_and_verdicts(
    browser: Chrome, page: Path, width: int, verdicts: int, scheme: str
) -> None:
    show(browser, page, width, scheme, unfolded=False)
    order = ["h1", ".answer", ".flags", *(f".verdicts li:nth-child({place + 1})" for place in range(verdicts))]
    ends = [bottom(browser, selector) for selector in order]
    assert ends == sorted(ends)
    assert ends[-1] <= 800
    assert bottom(browser, ".verdicts") < bottom(browser, "#differences") < bottom(browser, ".overview")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(WIDER) == []


def test_details_are_folded_and_open_by_keyboard(browser: Chrome, page: Path) -> None:
    show(browser, page, unfolded=False)
    tables = browser.find_elements(By.CSS_SELECTOR, "table")
    assert len(tables) > 8
    assert not any(table.is_displayed() for table in tables)
    browser.find_element(By.CSS_SELECTOR, "#results > summary").send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "#results table").is_displayed()
    assert not browser.find_element(By.CSS_SELECTOR, "#provenance table").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, PHONE, 768, DESKTOP])
def test_only_tables_scroll_sideways(browser: Chrome, page: Path, width: int, scheme: str) -> None:
    show(browser, page, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(WIDER) == []
    assert browser.find_element(By.CSS_SELECTOR, ".cards article").is_displayed()


def test_figures_are_readable_on_a_phone(browser: Chrome, page: Path) -> None:
    show(browser, page, PHONE)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure svg text')].map(node => node.getBoundingClientRect().height)"
    )
    assert len(heights) > 50
    assert min(heights) >= 8


def test_page_and_figures_follow_dark_mode(browser: Chrome, page: Path) -> None:
    found = []
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        found.append(
            [
                colour(browser, "body", "backgroundColor"),
                colour(browser, "figcaption", "color"),
                colour(browser, "figure svg text", "fill"),
            ]
        )
    light, dark = found
    assert light[0] == "rgb(255, 255, 255)"
    assert light[2] == light[1]
    assert dark[2] == dark[1]
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_the_keyboard_reaches_answer_and_tables(browser: Chrome, page: Path) -> None:
    show(browser, page)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the answer"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "answer"
    reached = set()
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.execute_script("return document.activeElement.getAttribute('aria-labelledby')"))
    assert {"arms", "claims", "references"} <= reached


def test_text_and_marks_have_contrast_in_both_schemes(browser: Chrome, page: Path) -> None:
    names = ["--ink", "--muted", "--link", "--warning", "--baseline", *(f"--series-{place}" for place in range(8))]
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        style = "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()"
        paper = browser.execute_script(style, "--paper")
        for name in names:
            least = 3.0 if name.startswith(("--series", "--baseline")) else 4.5
            assert contrast(browser.execute_script(style, name), paper) >= least, (scheme, name)


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two colours like `#1b1d21`."""

    def luminance(code: str) -> float:
        parts = [int(code[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)
