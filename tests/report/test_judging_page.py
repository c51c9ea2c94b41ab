"""The page of a report: nothing of a model's text is obeyed, every number is the file's."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit.cli.evaluate import evaluate

PAYLOADS = [
    "<script>window.PWN=1</script>",
    '<img src=x onerror="window.PWN=1">',
    "</script></pre></textarea><svg onload=window.PWN=1>",
]
HIDDEN = "left\u202eright\x1b[31m\u2066"


@pytest.fixture
def page(tmp_path: Path) -> str:
    rows = []
    for n in range(12):
        payload = PAYLOADS[n % 3]
        rows.append(
            {"kind": "judgement", "prompt_id": f"p{n}{payload}", "a": f"dpo{PAYLOADS[1]}"}
            | {"b": "sft", "verdict": ["a", "b", "tie"][n % 3], "judge": payload}
            | {"prompt": payload + HIDDEN, "output_a": payload, "output_b": f"fine {n}"}
            | {"extra": {"category": f"c{n % 2}{payload}"}}
        )
    source = tmp_path / "j.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = tmp_path / "report.html"
    result = CliRunner().invoke(evaluate, ["winrate", str(source), "--html", str(target)])
    assert result.exit_code == 0, result.output
    return target.read_text()


class Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))


@contextmanager
def opened(page: Path) -> Iterator[Any]:
    """The page in a browser that must have nothing to complain about."""
    sync_api = pytest.importorskip("playwright.sync_api")
    known = map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser"))
    chromium = next((path for path in known if path.exists()), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        tab = browser.new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text))
        tab.goto(page.as_uri())
        yield tab
        assert errors == []
        browser.close()


def test_no_payload_becomes_a_tag(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    names = [name for name, _ in tags.seen]
    assert names.count("script") == 1
    assert "img" not in names
    assert not any(key.startswith("on") for _, attrs in tags.seen for key in attrs)
    assert page.count("&lt;script&gt;window.PWN=1") >= 8
    assert "http" not in re.sub(r'http-equiv="', "", page)


def test_hidden_characters_are_shown(page: str) -> None:
    assert "leftU+202ErightU+001B[31mU+2066" in re.sub(r"</?span[^>]*>", "", page)
    assert "\u202e" not in page


def test_only_the_page_s_own_script_may_run(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")


def test_rows_add_up_to_the_headline(page: str) -> None:
    scores = [float(x) for x in re.findall(r'data-score="([\d.]+)"', page)]
    assert len(scores) == 12
    assert f"win rate {100 * sum(scores) / 12:.1f} %" in page
    assert [page.count(f'data-verdict="{v}"') for v in ("won", "tied", "lost")] == [4, 4, 4]


# --- several models ------------------------------------------------------------------------------


@pytest.fixture
def tournament(tmp_path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Three models on nine prompts, two judges each, who disagree on every third prompt."""
    names = [f"x{PAYLOADS[1]}", "y", "z"]
    rows = []
    for n in range(9):
        for i, j in ((0, 1), (1, 2), (2, 0)):
            for judge in range(2):
                verdict = "ab"[(n % 3 == 0) * judge]
                rows.append(
                    {"kind": "judgement", "prompt_id": f"p{n}", "a": names[i], "b": names[j]}
                    | {"verdict": verdict, "judge": f"j{judge}", "prompt": f"ask {n}"}
                    | {"output_a": f"{names[i]} said {n}", "output_b": f"{names[j]} said {n}"}
                )
    source, target = tmp_path / "j.jsonl", tmp_path / "many.html"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(evaluate, ["winrate", str(source), "--html", str(target)])
    assert result.exit_code == 0, result.output
    return target.read_text(), rows


def test_the_page_of_several_models_shows_every_prompt_of_every_two(
    tournament: tuple[str, list[dict[str, Any]]],
) -> None:
    page, rows = tournament
    tags = Tags()
    tags.feed(page)
    shown = [attrs for name, attrs in tags.seen if name == "tr" and "data-pair" in attrs]
    assert len(shown) == 27
    assert {row["data-pair"] for row in shown} == {"0", "1", "2"}
    # Two judges against each other: the score is a half and they are one apart.
    apart = [row for row in shown if row["data-spread"] == "1.000000"]
    assert len(apart) == 9
    assert {row["data-score"] for row in apart} == {"0.500000"}
    assert {row["data-spread"] for row in shown if row not in apart} == {"0.000000"}
    assert "img" not in [name for name, _ in tags.seen]
    assert [name for name, _ in tags.seen].count("option") == 4
    for row in rows[::2]:
        assert row["output_a"] in html.unescape(page)


@pytest.mark.browser
def test_models_are_chosen_and_disagreement_sorted_in_a_browser(
    tournament: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    target = tmp_path / "open.html"
    target.write_text(tournament[0])
    with opened(target) as tab:
        assert tab.locator("tbody tr:visible").count() == 27
        tab.select_option("select", "1")
        assert tab.locator("tbody tr:visible").count() == 9
        tab.click("button[data-show=tied]")
        assert tab.locator("tbody tr:visible").count() == 3
        tab.click("button[data-show='']")
        tab.click("button[data-sort=spread]")
        first = tab.locator("tbody tr:visible").first
        assert first.get_attribute("data-spread") == "1.000000"
        assert tab.evaluate("window.PWN") is None


@pytest.mark.browser
def test_filters_and_sorting_in_a_browser(page: str, tmp_path: Path) -> None:
    target = tmp_path / "open.html"
    target.write_text(page)
    with opened(target) as tab:
        assert tab.evaluate("window.PWN") is None
        tab.click("button[data-show=won]")
        assert tab.locator("tbody tr:visible").count() == 4
        tab.click("button[data-show='']")
        tab.fill("input[type=search]", "fine 7")
        assert tab.locator("tbody tr:visible").count() == 1
        tab.fill("input[type=search]", "")
        tab.click("button[data-sort=score]")
        assert tab.locator("tbody tr").first.get_attribute("data-score") == "1.000000"
        tab.click("button[data-sort=score]")
        assert tab.locator("tbody tr").first.get_attribute("data-score") == "0.000000"
        assert tab.evaluate("window.PWN") is None
