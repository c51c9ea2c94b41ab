"""Make text of models and files safe to look at: show what would act or stay unseen.

Escape sequences rewrite a terminal, direction overrides make `a > b` read as `b > a`, and invisible
characters carry instructions. Every screen and page shows text through `visible`, so all of them
show the same. HTML is not escaped here.
"""

from __future__ import annotations

import regex

# What Unicode calls ignorable (marks, fillers, isolates, tags, joiners), controls, lone surrogates,
# annotations, and the line separators, on which terminals and pages disagree.
_UNSEEN = regex.compile(
    r"[[\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cs}\p{Zl}\p{Zp}\uFFF9-\uFFFB]--[\n\t]]",
    regex.VERSION1,
)
# Letters and vowel signs of scripts whose letters join or stack: Arabic, Persian, Hindi, …
_JOINING = r"[[\p{L}\p{M}]&&[\p{JT=D}\p{JT=R}\p{JT=L}\p{JT=C}[^\p{InSC=Other}]]]"
# Where an ignorable character is part of writing. Anywhere else it carries what nobody sees: a
# joiner between Latin letters, a second selector on one symbol, letters of tags.
_WRITTEN = regex.compile(
    rf"""
      (?<={_JOINING} [\p{{M}}--\p{{DI}}]{{0,3}}) [\u200C\u200D]
    | (?<![\u200C\u200D]) [\u200C\u200D] (?={_JOINING})
    | (?<=\p{{ExtPict}} [\uFE0F\U0001F3FB-\U0001F3FF]?) \u200D (?=\p{{ExtPict}})
    | (?<=[[\p{{Emoji}}\p{{Sm}}\p{{So}}]--[\x00-\x7F]]) [\uFE00-\uFE0F]
    | (?<=[0-9\#*]) \uFE0F (?=\u20E3)
    | (?<=[\p{{Han}}\p{{Myanmar}}\p{{Phags_Pa}}]) [\uFE00-\uFE0F]
    | (?<=\p{{Han}}) [\U000E0100-\U000E01EF]
    | (?<=[\p{{Mongolian}}--\p{{DI}}]) [\u180B-\u180F]
    """,
    regex.VERSION1 | regex.VERBOSE,
)


def visible(text: str, mark: str = "⟨U+{:04X}⟩") -> str:
    """Show every acting or invisible character as `mark`, its number; CRLF becomes a newline."""

    def shown(match: regex.Match[str]) -> str:
        # The cheap pattern finds candidates; only there does the one with look-behind run.
        if _WRITTEN.match(match.string, match.start()):
            return match[0]
        return mark.format(ord(match[0]))

    return _UNSEEN.sub(shown, text.replace("\r\n", "\n"))


def visible_line(text: str) -> str:
    """`visible` for names and titles: newlines and tabs are spaces."""
    return " ".join(visible(text).split())
