"""Text of models and files made safe to look at: what would act on a screen is spelled out.

Escape sequences can rewrite a terminal, bidirectional overrides can make `a > b` read as `b > a`,
and invisible characters can carry instructions. Everything a person ranks goes through here, in
the terminal and on the page, so both show the same thing. HTML is not escaped here: the page sets
text, never markup.
"""

from __future__ import annotations

import re

# Kept: tab and newline; ZWNJ and ZWJ (U+200C, U+200D), which Persian, Indic scripts and emoji
# need; U+2028 and U+2029 are spelled out because terminals and pages disagree on what they do.
_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5"  # soft hyphen, joiners and fillers without a shape
    "\u180e\u200b\u200e\u200f\u2028-\u202e"  # zero width space, marks, embeddings, overrides
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"  # isolates, invisible operators, annotations
    "\ud800-\udfff"  # lone surrogates cannot be encoded at all
    "\U000e0000-\U000e007f"  # tags: text in no font
    "]"
)


def visible(text: str) -> str:
    """`text` with every acting or invisible character as `⟨U+202E⟩`; CRLF becomes a newline."""
    return _HIDDEN.sub(_spelled, text.replace("\r\n", "\n"))


def visible_line(text: str) -> str:
    """`visible` for names and titles: newlines and tabs are spaces."""
    return " ".join(visible(text).split())


def _spelled(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match[0]):04X}⟩"
