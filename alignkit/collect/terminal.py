"""Rank in a terminal by typing plain lines, so that ssh, pipes and screen readers work.

One line holds an order with its strength and comment: `2>1=3 !3 # the code runs`.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import monotonic

from alignkit.collect.items import Presentation
from alignkit.collect.log import new_id
from alignkit.collect.markdown_ansi import BOLD, CYAN, DIM, RESET, marked, rendered
from alignkit.collect.session import Entry, Session, Submission
from alignkit.errors import AlignkitError, DataError, UserError, did_you_mean
from alignkit.store.visible import visible_line

# A terminal cannot see reading, only lines; a longer silence counts as a break.
IDLE_MS = 5 * 60 * 1000
WIDEST = 100

HELP = """\
  2>1=3      2 first, then 1 and 3 tied; 213 means 2>1>3; * means all the others: 2>*
  1          with two completions one number is enough
  t          tie all                       b   none is acceptable; 'b 2>1' adds an order
  !3         after an order: how clear the difference is, 1 slightly to 4 vastly
  # text     after an order: a comment     2>1 !2 # cites a source
  s [why]    skip this item                f why   flag it: something is wrong
  u          undo the last vote            v   show the item again
  m          toggle rendered Markdown      ?   show this help
  q          stop; everything is saved, and the same command resumes here
"""
_LINE = re.compile(
    r"(?P<order>[^!#]*?)\s*(?:!\s*(?P<strength>[^\s#]*))?\s*(?:#\s*(?P<comment>.*))?$", re.DOTALL
)


class Quit(Exception):
    """The annotator wants to stop."""


@dataclass
class Screen:
    """Input and output of lines, in colour only where it can be seen."""

    read: Callable[[str], str]
    write: Callable[[str], None]
    colour: bool = True

    def put(self, text: str = "", style: str = "") -> None:
        """Print one or more lines."""
        self.write(f"{style}{text}{RESET}" if style and self.colour and text else text)


@dataclass
class Terminal:
    """One annotator at a terminal."""

    session: Session
    screen: Screen
    markdown: bool = True
    _shown: Presentation | None = None
    _since: float = field(default_factory=monotonic)
    _key: str = ""

    def run(self) -> None:
        """Show items and store votes until none is left or the annotator stops."""
        self.screen.put("Type ? for help, q to stop.", DIM)
        try:
            while (shown := self.session.next()) is not None:
                if self._shown is None or shown.ticket != self._shown.ticket:
                    self._show(shown)
                self._turn(shown)
        except (Quit, EOFError):
            self.screen.put()
        else:
            self.screen.put("All done. Thank you.", BOLD)
        progress = self.session.progress()
        self.screen.put(f"Your saved votes: {progress.mine}.")

    def _turn(self, shown: Presentation) -> None:
        """Handle one line of the annotator; explain a mistake without losing anything."""
        line = self.screen.read(self._prompt(shown)).strip()
        if not line:
            return
        word, _, rest = line.partition(" ")
        try:
            if word.lower() in COMMANDS:
                COMMANDS[word.lower()](self, shown, rest.strip())
            else:
                self._rank(shown, line)
        except UserError as error:
            self.screen.put(f"  {visible_line(str(error))}", BOLD)
        except AlignkitError as error:
            self.screen.put(f"  Not saved. {visible_line(str(error))}", BOLD)

    def _prompt(self, shown: Presentation) -> str:
        places = "1 or 2" if len(shown.slots) == 2 else f"1 to {len(shown.slots)}"
        return f"order ({places}) > "

    def _rank(self, shown: Presentation, line: str, *, all_bad: bool = False) -> None:
        vote = replace(parse_line(line), all_bad=all_bad)
        if not vote.order and not all_bad:
            raise DataError("no order given", hint="Type 2>1=3, or ? for help")
        if vote.order[0:1].isalpha():
            commands = [name for name in COMMANDS if name.isalpha()]
            raise DataError(
                f"{vote.order.split()[0]!r} is neither an order nor a command"
                + did_you_mean(vote.order, commands),
                hint="? shows both",
            )
        self._store(shown, vote)
        lengths = ", ".join(
            f"{place}: {count:,}" for place, count in enumerate(shown.characters(), start=1)
        )
        self.screen.put(f"  saved (characters {lengths})", DIM)

    def _store(self, shown: Presentation, submission: Submission) -> None:
        wall = int((monotonic() - self._since) * 1000)
        self.session.submit(
            replace(
                submission,
                key=self._key,
                ticket=shown.ticket,
                active_ms=min(wall, IDLE_MS),
                wall_ms=wall,
            )
        )

    def _tie_all(self, shown: Presentation, rest: str) -> None:
        order = "=".join(str(place) for place in range(1, len(shown.slots) + 1))
        self._rank(shown, f"{order} {rest}")

    def _all_bad(self, shown: Presentation, rest: str) -> None:
        self._rank(shown, rest, all_bad=True)

    def _skip(self, shown: Presentation, rest: str) -> None:
        self._store(shown, Submission("", "", "skip", reason=rest or None))
        self.screen.put("  skipped", DIM)

    def _flag(self, shown: Presentation, rest: str) -> None:
        reason = rest or self.screen.read("what is wrong with it? > ").strip()
        self._store(shown, Submission("", "", "flag", reason=reason))
        self.screen.put("  flagged", DIM)

    def _undo(self, _shown: Presentation, _rest: str) -> None:
        if self.session.undo(new_id()) is None:
            self.screen.put("  nothing to undo")
            return
        self._shown = None

    def _again(self, shown: Presentation, _rest: str) -> None:
        self._show(shown, fresh=False)

    def _toggle_markdown(self, shown: Presentation, _rest: str) -> None:
        self.markdown = not self.markdown
        self._show(shown, fresh=False)

    def _help(self, _shown: Presentation, _rest: str) -> None:
        self.screen.put(HELP)

    def _quit(self, _shown: Presentation, _rest: str) -> None:
        raise Quit

    def _show(self, shown: Presentation, *, fresh: bool = True) -> None:
        self._shown = shown
        if fresh:
            self._since, self._key = monotonic(), new_id()
        progress = self.session.progress()
        self._rule(f"{progress.done + 1} of {progress.total}")
        for turn in shown.prompt:
            self.screen.put(f"[{turn['role']}]", DIM)
            self._text(turn["text"])
        for place, turns in enumerate(shown.completions, start=1):
            self._rule(f"completion {place}", CYAN)
            for turn in turns:
                if len(turns) > 1:
                    self.screen.put(f"[{turn['role']}]", DIM)
                self._text(turn["text"])
        self._rule()
        if (previous := self.session.previous()) is not None:
            self.screen.put(f"  undone: {as_typed(previous)}", DIM)

    def _text(self, text: str) -> None:
        wrapped = "\n".join(wrap(text, width()))
        if self.screen.colour:
            wrapped = marked(rendered(wrapped) if self.markdown else wrapped)
        self.screen.put(wrapped)

    def _rule(self, title: str = "", style: str = BOLD) -> None:
        head = f"── {title} " if title else ""
        self.screen.put(head + "─" * (width() - len(head)), style if title else DIM)


def parse_line(line: str) -> Submission:
    """Parse `2>1=3 !3 # comment` into a submission, still without key and ticket.

    Raises DataError for a malformed line.
    """
    match = _LINE.match(line.strip())
    if match is None:
        raise DataError(
            "cannot read this line", hint="Type order, !strength, # comment: 2>1 !3 # runs"
        )
    strength = match["strength"]
    if strength is not None and strength not in tuple("1234"):
        raise DataError(f"!{strength}: the difference must be 1 (slight) to 4 (vast)")
    return Submission(
        key="",
        ticket="",
        order=match["order"].strip(),
        strength=int(strength) if strength else None,
        comment=(match["comment"] or "").strip(),
    )


def as_typed(entry: Entry) -> str:
    """Format an act as the annotator would type it."""
    parts = [
        "b" if entry.all_bad else "",
        entry.order,
        f"!{entry.strength}" if entry.strength else "",
        f"# {visible_line(entry.comment)}" if entry.comment else "",
    ]
    return " ".join(filter(None, parts)) or "not ranked"


def width() -> int:
    """Return the width of text: the terminal's, up to a comfortable line length."""
    return min(WIDEST, shutil.get_terminal_size().columns)


def wrap(text: str, columns: int) -> Iterator[str]:
    """Wrap lines at spaces to at most `columns` cells; code and indented lines stay as they are."""
    code = False
    for line in text.split("\n"):
        if line.lstrip().startswith(("```", "~~~")):
            code = not code
        if code or line.startswith(("    ", "\t")):
            yield line
        else:
            yield from _folded(line, columns)


def _folded(line: str, columns: int) -> Iterator[str]:
    folded, cells = "", 0
    for word in re.findall(r"\s*\S+", line) or [line]:
        wide = cells_of(word)
        if folded and cells + wide > columns:
            yield folded
            word = word.lstrip()
            folded, cells = "", 0
            wide = cells_of(word)
        folded, cells = folded + word, cells + wide
    yield folded


def cells_of(text: str) -> int:
    """Count terminal columns: East Asian wide characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


COMMANDS: dict[str, Callable[[Terminal, Presentation, str], None]] = {
    "t": Terminal._tie_all,
    "0": Terminal._tie_all,
    "b": Terminal._all_bad,
    "s": Terminal._skip,
    "f": Terminal._flag,
    "u": Terminal._undo,
    "v": Terminal._again,
    "m": Terminal._toggle_markdown,
    "?": Terminal._help,
    "q": Terminal._quit,
}
