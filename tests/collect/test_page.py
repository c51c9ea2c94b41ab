"""The ranking page in a real browser: keys, tabs, reloads, hostile text, the mailed file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit.collect.items import item_sha256, pool_of, present
from alignkit.collect.log import read_events
from alignkit.collect.secret import Marks, read_secret
from tests.collect_data import XSS, item, items, lines, write

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SERVE = "import sys; from alignkit.cli import main; main(['rank', *sys.argv[1:]])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not Path(CHROMIUM).exists() and "CI" not in os.environ:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Served:
    """`alignkit rank` on a free port; `links` by annotator."""

    def __init__(self, candidates: Path, output: Path, *options: str, port: int = 0) -> None:
        names = [b for a, b in zip(options, options[1:], strict=False) if a == "--annotator"]
        self.names = names or ["ann"]
        named = options if names else (*options, "--annotator", "ann")
        self.command = [str(candidates), "--output", str(output), *named]
        self.port = port

    def __enter__(self) -> Served:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *self.command, "--port", str(self.port)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout
        printed = [self.process.stdout.readline().strip().split("  ") for _ in self.names]
        self.links = dict(printed)
        self.port = int(self.links[self.names[0]].split(":")[2].split("/")[0])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def opened(browser: Any, link: str, **context: Any) -> Any:
    """A page of a browser of its own, which fails the test on any script error."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(120_000)  # patience with a loaded machine, no limit to hold
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
    page.errors = []
    page.goto(link)
    page.locator("main[aria-busy=false]").wait_for()
    return page


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def at(page: Any, number: int) -> None:
    """Wait until item `number` is on screen."""
    page.locator("h1", has_text=f"Item {number}:").wait_for()


def shown_cids(log: Path, record: Any, annotator: str = "ann", showing: int = 0) -> list[str]:
    one = pool_of([record]).items[record.id]
    marks = Marks(17, read_secret(log))
    return present(one, marks, annotator=annotator, showing=showing).shown


def test_twenty_items_by_keyboard_only_undo_and_a_reload_in_the_middle(
    browser: Any, tmp_path: Path
) -> None:
    records = items(20, 3)
    output = tmp_path / "r.jsonl"
    orders = [["2", ">", "1", "=", "3"], ["3", "1", "2"], ["1", "*"], ["0"]]
    with Served(write(tmp_path / "c.jsonl", records), output) as served:
        page = opened(browser, served.links["ann"])
        assert "token" not in page.url
        for number in range(20):
            at(page, number + 1)
            press(page, *orders[number % 4])
            if number == 5:
                press(page, "+", "+", "c")
                page.keyboard.type("sb ? 1 keys are letters here")
                press(page, "Escape")
            if number == 7:  # a slip, undone and corrected
                press(page, "Enter")
                at(page, number + 2)
                press(page, "u")
                at(page, number + 1)
                assert page.locator("#order").input_value() == "1=2=3"
                press(page, "Backspace", "Backspace", "Backspace", "3", "1", "2")
                assert page.locator("#order").input_value() == "3>1>2"
            if number == 11:  # what was typed survives a reload
                press(page, "b")
                page.reload()
                at(page, number + 1)
                assert page.locator("#order").input_value() == "1=2=3"
                assert page.locator("#all-bad").get_attribute("aria-pressed") == "true"
            press(page, "Enter")
        page.locator("h1", has_text="All done").wait_for()
        assert page.locator("#status").inner_text().startswith("Saved. Characters: completion 1:")
        assert page.errors == []
    events = read_events(output)
    assert [e.action for e in events].count("undo") == 1
    void = {e.supersedes for e in events}
    votes = [e for e in events if e.id not in void and e.action == "rank"]
    assert len(lines(output)) == 22 and len(votes) == 20
    places = [(2, 1, 2), (2, 3, 1), (1, 2, 2), (1, 1, 1)]
    by_item = {e.item: e for e in votes}
    for number, record in enumerate(records):
        event = by_item[record.id]
        wanted = (2, 3, 1) if number == 7 else places[number % 4]
        assert event.shown == shown_cids(output, record)
        assert event.ranks == dict(zip(event.shown, wanted, strict=True)), record.id
        assert event.item_sha256 == item_sha256(record)
        assert event.ui == "web" and event.all_bad == (number == 11)
        assert 0 < (event.active_ms or 0) <= (event.wall_ms or 0)
    assert by_item["item-5"].comment == "sb ? 1 keys are letters here"
    assert by_item["item-5"].strength == 2


def test_two_tabs_of_one_annotator_store_one_vote_an_item(browser: Any, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    with Served(write(tmp_path / "c.jsonl", items(3)), output) as served:
        one = opened(browser, served.links["ann"])
        two = one.context.new_page()
        two.goto(f"http://127.0.0.1:{served.port}/")
        at(two, 1)
        press(one, "1", "Enter")
        at(one, 2)
        press(two, "2", "Enter")
        at(two, 2)
        assert "Not saved again" in two.locator("#status").inner_text()
        press(two, "2", "Enter")
        at(two, 3)
        one.reload()
        at(one, 3)
    events = read_events(output)
    assert [event.item for event in events] == ["item-0", "item-1"]
    assert (events[0].ranks or {})[events[0].shown[0]] == 1
    assert (events[1].ranks or {})[events[1].shown[1]] == 1


def test_a_double_click_and_a_held_enter_save_once(browser: Any, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    with Served(write(tmp_path / "c.jsonl", items(4)), output) as served:
        page = opened(browser, served.links["ann"])
        page.locator(".completion[data-place='2'] .pick").click()
        page.locator("#save").dblclick()
        at(page, 2)
        press(page, "1")
        page.keyboard.down("Enter")
        page.keyboard.down("Enter")  # the repeat of a held key
        at(page, 3)
    assert [event.item for event in read_events(output)] == ["item-0", "item-1"]


def test_two_annotators_see_their_own_order_and_progress(browser: Any, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    records = items(6, 4)
    names = ("--annotator", "ann", "--annotator", "ben")
    with Served(write(tmp_path / "c.jsonl", records), output, *names) as served:
        ann, ben = (opened(browser, served.links[name]) for name in ("ann", "ben"))
        press(ann, "c")
        ann.keyboard.type("private remark")
        press(ann, "Escape", "1", "*", "Enter")
        at(ann, 2)
        assert ben.locator("#count").inner_text() == "0 of 6"
        ben.reload()
        at(ben, 1)
        assert "private remark" not in ben.content()
        press(ben, "2", "*", "Enter")
        at(ben, 2)
    events = read_events(output)
    assert [event.annotator for event in events] == ["ann", "ben"]
    assert events[0].shown == shown_cids(output, records[0], "ann")
    assert events[1].shown == shown_cids(output, records[0], "ben")


def test_an_answer_given_while_the_server_is_away_arrives_later(
    browser: Any, tmp_path: Path
) -> None:
    output = tmp_path / "r.jsonl"
    candidates = write(tmp_path / "c.jsonl", items(3))
    with Served(candidates, output) as served:
        page = opened(browser, served.links["ann"])
        served.process.kill()
        served.process.wait()
        press(page, "2", "Enter")
        page.locator("#problem", has_text="Not saved yet").wait_for()
    assert lines(output) == []
    with Served(candidates, output, port=served.port) as again:
        page.locator("#problem", has_text="needs the link").wait_for()  # tokens change
        page.goto(again.links["ann"])
        at(page, 2)
        assert "had not been sent is saved now" in page.locator("#status").inner_text()
    events = read_events(output)
    assert len(events) == 1 and (events[0].ranks or {})[events[0].shown[1]] == 1


def test_skip_and_flag_ask_why(browser: Any, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    with Served(write(tmp_path / "c.jsonl", items(3)), output) as served:
        page = opened(browser, served.links["ann"])
        press(page, "s")
        page.keyboard.type("not my field")
        press(page, "Enter")
        at(page, 2)
        press(page, "f", "Enter")  # a flag without a reason does not go through
        assert page.locator("#why").is_visible()
        page.keyboard.type("names a person")
        press(page, "Enter")
        at(page, 3)
        press(page, "s", "Escape")
        assert not page.locator("#why").is_visible()
        assert page.errors == []
    events = read_events(output)
    assert [(e.action, e.reason) for e in events] == [
        ("skip", "not my field"),
        ("flag", "names a person"),
    ]


def hostile() -> Any:
    markdown = (
        f"**{XSS[0]}** [x](javascript:window.PWN=1) ![y](x:{XSS[1]}) `{XSS[2]}`\n\n# {XSS[1]}"
    )
    record = item(0, [*XSS, markdown, "```html\n" + "\n".join(XSS) + "\n```"], prompt=" ".join(XSS))
    record.prompt[0].name = XSS[1]
    return record


def assert_nothing_ran(page: Any) -> None:
    assert page.evaluate("() => window.PWN === undefined && !window.PWN")
    own = {"/text.js", "/source.js", "/page.js", ""}
    sources = page.evaluate("() => [...document.scripts].map(s => s.getAttribute('src') ?? '')")
    assert set(sources) <= own
    assert page.locator("main img, main script, main svg, main a, main iframe").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_threat_6_hostile_text_is_only_text(browser: Any, tmp_path: Path, scheme: str) -> None:
    output = tmp_path / "r.jsonl"
    with Served(write(tmp_path / "c.jsonl", [hostile(), *items(2)[1:]]), output) as served:
        page = opened(browser, served.links["ann"], color_scheme=scheme)
        for _ in ("rendered", "raw"):
            assert_nothing_ran(page)
            for payload in XSS:
                assert payload in page.locator("#conversation").inner_text()
                assert payload in page.locator("#completions").inner_text()
            press(page, "m")
        press(page, "c")
        page.keyboard.type(" ".join(XSS))
        press(page, "Escape", "1", "*", "Enter")
        at(page, 2)
        press(page, "u")  # the hostile comment comes back into its field
        at(page, 1)
        assert page.locator("#comment").input_value() == " ".join(XSS)
        assert_nothing_ran(page)
        assert page.errors == []
    assert read_events(output)[0].comment == " ".join(XSS)


def test_the_rendering_keeps_the_text_and_adds_only_known_elements(
    browser: Any, tmp_path: Path
) -> None:
    with Served(write(tmp_path / "c.jsonl", items(1)), tmp_path / "r.jsonl") as served:
        page = opened(browser, served.links["ann"])
        html = page.evaluate(
            "text => renderedText(text).outerHTML",
            "# Title\n\nSome **bold**, *it*, `a<b`, ~~no~~ [x](http://e.example)\n\n- one\n- two\n"
            "  1. deep\n\n> said\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
            "```py\nif a < b:\n    pass\n```\n---",
        )
        for part in (
            "<h3>Title</h3>", "<strong>bold</strong>", "<em>it</em>", "<code>a&lt;b</code>",
            "<s>no</s>", '<span class="target">(http://e.example)</span>', "<li>one</li>",
            "<blockquote><p>said</p></blockquote>", "<td>2</td>", "if a &lt; b:\n    pass", "<hr>",
        ):  # fmt: skip
            assert part in html, part
        assert not re.search(r"\s(href|src|on\w+|style)=", html)
        slow = "*" * 5000 + "[" * 5000 + "`" * 5001 + "|" * 5000 + "\n|-" * 3000 + "> " * 3000
        clock = (
            "t => { const s = performance.now(); renderedText(t); return performance.now() - s; }"
        )
        assert page.evaluate(clock, slow) < 2000


def test_control_characters_are_visible(browser: Any, tmp_path: Path) -> None:
    record = item(0, ["safe \u202e evil", "\x1b[31mred\u200b"])
    with Served(write(tmp_path / "c.jsonl", [record]), tmp_path / "r.jsonl") as served:
        page = opened(browser, served.links["ann"])
        marks = page.locator("#completions .unseen").all_inner_texts()
        assert sorted(marks) == ["⟨U+001B⟩", "⟨U+200B⟩", "⟨U+202E⟩"]


def test_nothing_on_the_page_or_the_wire_tells_the_model(browser: Any, tmp_path: Path) -> None:
    record = item("sft-vs-dpo", ["x", "y"], prompt="?", gold={"c0": 1, "c1": 2})
    seen: dict[str, str] = {}
    with Served(write(tmp_path / "c.jsonl", [record]), tmp_path / "r.jsonl") as served:
        page = browser.new_context().new_page()
        page.on("response", lambda r: r.ok and seen.update({r.url.rpartition("/")[2]: r.text()}))
        page.goto(served.links["ann"])
        at(page, 1)
        shown = page.locator("body").inner_text()
    assert '"ticket"' in seen["next"]
    for text in [*seen.values(), shown]:
        assert not re.search(r"secret-model|sft-vs-dpo|\bc0\b|\"gold\"", text)
    # Lengths are a cue: they are told after the vote.
    assert "haracter" not in shown and "characters" not in seen["next"]


def test_a_screen_reader_finds_everything(browser: Any, tmp_path: Path) -> None:
    with Served(write(tmp_path / "c.jsonl", items(2, 3)), tmp_path / "r.jsonl") as served:
        page = opened(browser, served.links["ann"])
        for role, name in [
            ("heading", "Item 1: rank the 3 completions"),
            ("region", "Completions to rank"),
            ("region", "Conversation"),
            ("article", "Completion 3"),
            ("button", "Place completion 2 next"),
            ("textbox", "Order"),
            ("textbox", "Comment"),
            ("radio", "vastly"),
            ("progressbar", "Progress"),
            ("form", "Your ranking"),
        ]:
            assert page.get_by_role(role, name=name).count() == 1, (role, name)
        assert page.locator("[role=status][aria-live=polite]").count() == 1
        assert page.locator("[role=alert]").count() == 1
        assert page.evaluate("() => document.documentElement.lang") == "en"
        assert page.evaluate("() => document.activeElement.id") == "heading"
        press(page, "1", "*", "Enter")
        at(page, 2)
        assert page.locator("#status").inner_text().startswith("Saved.")
        assert page.evaluate("() => document.activeElement.id") == "heading"
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('button, input, textarea, select')].filter(e =>"
            " !(e.labels?.length || e.getAttribute('aria-label') || e.innerText?.trim()"
            " || e.textContent.trim())).map(e => e.outerHTML)"
        )
        assert unnamed == []


def test_tab_reaches_every_control_and_shows_where_it_is(browser: Any, tmp_path: Path) -> None:
    with Served(write(tmp_path / "c.jsonl", items(2)), tmp_path / "r.jsonl") as served:
        page = opened(browser, served.links["ann"])
        press(page, "1", "Enter")
        at(page, 2)
        reached = set()
        for _ in range(30):
            press(page, "Tab")
            where = page.evaluate(
                "() => { const e = document.activeElement;"
                " const seen = e.matches('input[type=radio]') ? e.nextElementSibling : e;"
                " const { outlineStyle, outlineWidth } = getComputedStyle(seen);"
                " const name = e.id || e.className || e.name || e.tagName;"
                " return [name, outlineStyle, outlineWidth]; }"
            )
            if where[0] != "BODY":
                assert where[1] == "solid" and where[2] == "3px", where
            reached.add(where[0])
        assert {"order", "tie", "all-bad", "strength", "comment", "undo", "skip", "flag", "save",
                "markdown", "theme", "help", "pick"} <= reached  # fmt: skip


def test_single_keys_can_be_switched_off(browser: Any, tmp_path: Path) -> None:
    with Served(write(tmp_path / "c.jsonl", items(2)), tmp_path / "r.jsonl") as served:
        page = opened(browser, served.links["ann"])
        press(page, "?")
        page.locator("#single").uncheck()
        press(page, "Escape", "1", "b")
        assert page.locator("#order").input_value() == ""
        page.locator("#order").fill("2>1")
        press(page, "Enter")
        at(page, 2)


CONTRAST = """() => {
  const channels = (c) => (c.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (c) => channels(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; const k = channels(c);
    if (k.length === 3 || k[3] > .9) return c; } return 'rgb(255,255,255)'; };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.disabled || e.closest(':disabled, .jump')) continue;
    if (channels(getComputedStyle(e).color).length === 0) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) bad.push([e.outerHTML.slice(0, 80), ratio]);
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(browser: Any, tmp_path: Path, scheme: str) -> None:
    record = item(0, ["# T\n\n`code` [l](http://x) \u202e", "> quote\n\n| a |\n|---|\n| b |"])
    with Served(write(tmp_path / "c.jsonl", [record, item(1)]), tmp_path / "r.jsonl") as served:
        page = opened(browser, served.links["ann"], color_scheme=scheme)
        assert page.evaluate(CONTRAST) == []
        press(page, "Enter")  # the complaint as well
        press(page, "1", "+", "b")
        assert page.evaluate(CONTRAST) == []
        press(page, "?")
        assert page.evaluate(CONTRAST) == []


def test_at_two_hundred_percent_nothing_is_cut_off(browser: Any, tmp_path: Path) -> None:
    long = "word " * 400 + "x" * 300 + "\n\n```\n" + "y" * 400 + "\n```"
    with Served(
        write(tmp_path / "c.jsonl", [item(0, [long, "b"])]), tmp_path / "r.jsonl"
    ) as served:
        size = {"width": 640, "height": 400}  # 1280 x 800 at 200 %
        page = opened(browser, served.links["ann"], viewport=size, device_scale_factor=2)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 640
        assert (
            page.evaluate("() => getComputedStyle(document.getElementById('vote')).position")
            == "static"
        )


def test_the_mailed_page_works_without_a_server_and_its_answers_come_back(
    browser: Any, tmp_path: Path
) -> None:
    records = [hostile(), *items(6)[1:]]
    candidates = write(tmp_path / "c.jsonl", records)
    mailed, answers, output = (tmp_path / n for n in ("mailed.html", "answers.json", "r.jsonl"))
    run = [sys.executable, "-m", "alignkit", "rank"]
    made = ["--output", output, "--annotator", "ann", "--repeat", "20%", "--export-html", mailed]
    subprocess.run([*run, candidates, *made], check=True, capture_output=True)
    text = mailed.read_text()
    assert not re.search(r"secret-model|item-\d|\"c0\"", text)
    assert not re.search(r"(src|href)=", text.split("<body>")[0])
    rank_offline(browser, mailed, answers)
    merge = [*run, "import", answers, "--candidates", candidates, "--output", output]
    for told in ("9 saved, 0 already there", "0 saved, 9 already there"):
        merged = subprocess.run(merge, capture_output=True, text=True)
        assert merged.returncode == 0 and told in merged.stderr
    events = read_events(output)
    assert [e.action.replace("pair", "rank") for e in events] == [
        "rank", "rank", "undo", "rank", "skip", *["rank"] * 4
    ]  # fmt: skip
    assert events[0].shown == shown_cids(output, records[0])
    assert {e.ui for e in events} == {"html"}
    assert sum(e.repeat_of is not None for e in events) == 1
    sent = json.loads(answers.read_text())
    assert [e.ts for e in events] == [act["ts"] for act in sent["acts"]]


def rank_offline(browser: Any, mailed: Path, answers: Path) -> None:
    """Rank everything on the mailed page, with an undo, a skip and a reload, and download."""
    page = browser.new_context(offline=True, accept_downloads=True).new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
    page.goto(f"file://{mailed}")
    at(page, 1)
    assert_nothing_ran(page)
    press(page, "1", "*", "Enter")
    at(page, 2)
    press(page, "2", "Enter")
    at(page, 3)
    press(page, "u")
    at(page, 2)
    assert page.locator("#order").input_value() == "2"
    press(page, "1", "Enter")
    at(page, 3)
    press(page, "s")
    page.keyboard.type("why")
    press(page, "Enter")
    at(page, 4)
    page.reload()
    for number in range(4, 8):
        at(page, number)
        press(page, "0", "Enter")
    page.locator("h1", has_text="All done").wait_for()
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(answers)
    assert page.errors == []
    assert_nothing_ran(page)
