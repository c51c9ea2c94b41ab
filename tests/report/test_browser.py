"""The run report in a real browser: hostile text stays text, tooltips show, nothing is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit.report.run_page import ReportData, write_report
from tests.report.test_run_page import PAYLOADS, ROWS, everywhere

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists() and "CI" not in os.environ:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Opened:
    """A report opened in a tab, with what it asked for and what it complained about."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.tab = browser.new_page(**options)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.goto(path.as_uri())


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_text(browser: Any, tmp_path: Path, payload: str) -> None:
    path = write_report(tmp_path / "report.html", everywhere(payload))
    opened = Opened(browser, path)
    opened.tab.hover(".sample .prompt")
    opened.tab.click("details > summary >> nth=0")
    assert opened.tab.evaluate("window.PWN") is None
    assert opened.tab.inner_text(".sample .prompt") == payload
    assert opened.requests == [path.as_uri()]
    assert opened.complaints == []
    opened.tab.close()


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser: Any, tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", ReportData(title="t"))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", "<script>window.PWN=1</script></main>"), "utf-8")
    opened = Opened(browser, path)
    assert opened.tab.evaluate("window.PWN") is None
    assert "Content Security Policy" in " ".join(opened.complaints)
    opened.tab.close()


def test_pointing_at_a_point_shows_its_value(browser: Any, tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 4)]
    path = write_report(tmp_path / "report.html", ReportData(title="t", stages={"sft": rows}))
    tab = Opened(browser, path).tab
    tip = tab.locator(".hit .tip").nth(1)
    assert tip.evaluate("node => getComputedStyle(node).opacity") == "0"
    tab.locator(".hit .area").nth(1).hover()
    assert tip.evaluate("node => getComputedStyle(node).opacity") == "1"
    assert tip.locator("text").all_text_contents() == ["loss 0.5", "step 2"]
    tab.close()


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window_in_light_and_dark(
    browser: Any, tmp_path: Path, scheme: str, light: bool, width: int
) -> None:
    path = write_report(tmp_path / "report.html", ReportData(title="run", summary=ROWS))
    tab = Opened(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900}).tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(colour.removeprefix("rgb(").split(",")[0])
    assert (red > 200) == light
    tab.close()
