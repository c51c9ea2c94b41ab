"""What acts or stays unseen is shown by its number; what belongs to writing stays."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from alignkit.cli.evaluate import evaluate
from alignkit.collect.items import pool_of, present
from alignkit.collect.secret import Marks
from alignkit.data.checks.stats import stats_of
from alignkit.data.records import Label
from alignkit.report.run_page import ReportData, render
from alignkit.report.stats_page import stats_page
from alignkit.store.visible import visible, visible_line
from tests.collect_data import item

# Each class of characters: between two letters none of them belongs.
SHOWN = {
    "control": "\x00\x07\x08\x0b\x1b\x7f\x85\x9b",
    "carriage return alone": "\r",
    "direction mark": "\u061c\u200e\u200f",
    "direction embedding and override": "\u202a\u202b\u202c\u202d\u202e",
    "direction isolate": "\u2066\u2067\u2068\u2069",
    "deprecated direction": "\u206a\u206b\u206c\u206d\u206e\u206f",
    "space without width": "\u200b\ufeff\u2060",
    "soft hyphen, grapheme joiner": "\u00ad\u034f",
    "Hangul filler": "\u115f\u1160\u3164\uffa0",
    "Khmer vowel without a shape": "\u17b4\u17b5",
    "Mongolian separator and selector": "\u180b\u180e\u180f",
    "invisible operator": "\u2061\u2062\u2063\u2064",
    "annotation": "\ufff9\ufffa\ufffb",
    "line separator": "\u2028\u2029",
    "lone surrogate": "\ud800\udfff",
    "tag": "\U000e0001\U000e0041\U000e007f",
    "variation selector": "\ufe00\ufe0f\U000e0100\U000e01ef",
    "shorthand and musical control": "\U0001bca0\U0001d173",
    "joiner between Latin letters": "\u200c\u200d",
}
KEPT = {
    "newline and tab": "a\n\tb",
    "Persian": "نمی‌دانم سلام‌ها",
    "Arabic letter in its joining form": "ه‍ و ‍ه",
    "Arabic with vowel signs": "بَ‌ب",
    "Hindi": "नमस्‍ते र्‍",
    "Bengali, Sinhala, Malayalam": "র‍্য ක්‍ෂ ന്‍",
    "emoji of several": "👩‍🔬 👩🏽‍🚀 👨‍👩‍👧‍👦",
    "emoji with selectors": "❤️‍🔥 🏳️‍🌈 🏴‍☠️ ☎︎",
    "keycap": "1️⃣ #️⃣",
    "ideograph with its variant": "葛\U000e0100 﨑︀",
    "Mongolian with its selectors": "ᠮᠣᠩᠭᠣᠯ᠎ᠠ ᠪ᠋",
    "Arabic number sign": "\u0600١٢",
    "accents, wide letters, spaces": "é e\u0301 日本 x\u00a0y\u3000z",
}


@pytest.mark.parametrize("kind", SHOWN)
def test_each_class_of_unseen_characters_is_shown(kind: str) -> None:
    for character in SHOWN[kind]:
        assert visible(f"a{character}b") == f"a⟨U+{ord(character):04X}⟩b"
        assert visible_line(f"a{character}b") == f"a⟨U+{ord(character):04X}⟩b"


@pytest.mark.parametrize("kind", KEPT)
def test_what_belongs_to_writing_is_kept(kind: str) -> None:
    assert visible(KEPT[kind]) == KEPT[kind]


def test_a_second_joiner_or_selector_carries_what_nobody_sees() -> None:
    assert visible("ا\u200c\u200d\u200cب") == "ا\u200c⟨U+200D⟩⟨U+200C⟩ب"
    assert visible("👩\u200d\u200d🔬") == "👩⟨U+200D⟩⟨U+200D⟩🔬"
    assert visible("😀\ufe0f\ufe0e\U000e0101") == "😀\ufe0f⟨U+FE0E⟩⟨U+E0101⟩"
    assert visible("1\ufe0f 👩\u200d x") == "1⟨U+FE0F⟩ 👩⟨U+200D⟩ x"


def test_the_end_of_a_line_is_a_newline() -> None:
    assert visible("a\r\nb\rc") == "a\nb⟨U+000D⟩c"
    assert visible_line(" a\r\n\tb ") == "a b"


@given(st.text(max_size=100))
def test_what_is_shown_is_shown_once(text: str) -> None:
    assert visible(visible(text)) == visible(text)


# --- everywhere ----------------------------------------------------------------------------------

UNSEEN = [c for kind in SHOWN.values() for c in kind if not "\ud800" <= c <= "\udfff"]
MIXED = " ".join([f"a{c}b" for c in UNSEEN] + [text for text in KEPT.values() if "\n" not in text])


def winrates(place: Path) -> tuple[str, str]:
    """The text and the page of win rates of a model of that name, which said that."""
    rows = [
        {"kind": "judgement", "prompt_id": str(n), "a": MIXED, "b": "sft", "verdict": "a"}
        | {
            "prompt": MIXED,
            "output_a": MIXED,
            "output_b": "no",
            "extra": {"category": f"{n}{MIXED}"},
        }
        for n in range(2)
    ]
    source, target = place / "j.jsonl", place / "page.html"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(evaluate, ["winrate", str(source), "--html", str(target)])
    assert done.exit_code == 0, done.output
    return done.output, target.read_text()


SURFACES: dict[str, Callable[[Path], str]] = {
    "win rates on the terminal": lambda place: winrates(place)[0],
    "page of win rates": lambda place: winrates(place)[1],
    "report of a run": lambda place: render(
        ReportData(MIXED, samples=[{"prompt": MIXED, "replies": {MIXED: MIXED}}])
    ),
    "page of statistics": lambda place: stats_page(
        stats_of([Label.model_validate({"id": MIXED, "completion": [{"role": "user",
                  "content": MIXED[:500]}], "prompt": [], "label": True})]), MIXED),
    "items to rank": lambda place: present(
        pool_of([item(0, [MIXED, "no"], prompt=MIXED)]).items["item-0"], Marks(1), annotator="ann"
    ).prompt[0]["text"],
}  # fmt: skip


@pytest.mark.parametrize("surface", SURFACES)
def test_every_surface_shows_and_keeps_the_same(surface: str, tmp_path: Path) -> None:
    written = re.sub(
        r"</?span[^>]*>|<style>.*?</style>", "", SURFACES[surface](tmp_path), flags=re.S
    )
    shown = html.unescape(written).replace("⟨", "").replace("⟩", "")
    for character in UNSEEN:
        assert f"a{character}b" not in written
        assert f"aU+{ord(character):04X}b" in shown, f"U+{ord(character):04X}"
    for kind, text in KEPT.items():
        assert "\n" in text or text in shown, kind
