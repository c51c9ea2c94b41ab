"""Render Markdown for a terminal: bold, italics and code; the text itself is unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable

BOLD, DIM, ITALIC, UNDERLINE, CYAN, RED, RESET = (
    "\x1b[1m",
    "\x1b[2m",
    "\x1b[3m",
    "\x1b[4m",
    "\x1b[36m",
    "\x1b[31m",
    "\x1b[0m",
)
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
_SPANS: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (re.compile(r"`([^`\n]+)`"), lambda m: f"{CYAN}{m[1]}{RESET}"),
    (re.compile(r"\*\*(?=\S)([^*\n]+?)\*\*"), lambda m: f"{BOLD}{m[1]}{RESET}"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)\*(?![\w*])"), lambda m: f"{ITALIC}{m[1]}{RESET}"),
]
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*)")
_BULLET = re.compile(r"(\s*)[-*+]\s+(.*)")
_UNSEEN = re.compile(r"⟨U\+[0-9A-F]{4,6}⟩")


def rendered(text: str) -> str:
    """Return `text`, already made visible, with its Markdown as terminal attributes."""
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            fence = "" if line.strip().startswith(fence) else fence
            lines.append(f"{DIM}{line}{RESET}" if not fence else f"{CYAN}{line}{RESET}")
        elif mark:
            fence = mark[1]
            lines.append(f"{DIM}{line}{RESET}")
        else:
            lines.append(_line(line))
    return "\n".join(lines)


def marked(text: str) -> str:
    """Colour spelled-out characters red, so that nobody takes them for the model's own text."""
    return _UNSEEN.sub(lambda match: f"{RED}{match[0]}{RESET}", text)


def _line(line: str) -> str:
    if heading := _HEADING.match(line):
        return f"{BOLD}{UNDERLINE}{heading[1]}{RESET}"
    if bullet := _BULLET.match(line):
        line = f"{bullet[1]}• {bullet[2]}"
    # Code first: its content is not Markdown. Escape sequences contain no `*` or backtick.
    for pattern, show in _SPANS:
        line = pattern.sub(show, line)
    return line
