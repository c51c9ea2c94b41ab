"""Talking to one model, or to two at once without knowing which is which, line by line.

Who speaks is a function that tells its words as they come and returns them; models stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from alignkit.collect.feedback import Feedback, Reply
from alignkit.collect.markdown_ansi import BOLD, DIM
from alignkit.collect.secret import digest
from alignkit.collect.terminal import Quit, Screen
from alignkit.data.records import Message
from alignkit.errors import AlignkitError, DataError, did_you_mean
from alignkit.store.visible import visible, visible_line

# (conversation, seed, told each piece of the reply) -> the whole reply
Speaker = Callable[[list[Message], int, Callable[[str], None]], str]

HELP = """\
  /good, /bad     what you think of the last reply
  /fix TEXT       what it should have said; the conversation goes on with your words
  /regen          another reply to the same words
  /system TEXT    instructions for the model; starts over
  /new            start over            /undo   take the last exchange back
  /help           this help             /quit   stop
"""


@dataclass
class Chat:
    """A conversation with the models of `speakers` (name -> speaker), one or two."""

    speakers: Mapping[str, Speaker]
    screen: Screen
    seed: int
    piece: Callable[[str], None]
    feedback: Feedback | None = None
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    last: Reply | None = None
    drawn: int = 0

    def run(self) -> None:
        """Read lines until the person stops."""
        self.screen.put("Type /help for the commands, /quit to stop.", DIM)
        try:
            while True:
                self._line(self.screen.read("you > ").strip())
        except (Quit, EOFError):
            self.screen.put()

    def prompt(self) -> list[Message]:
        """What the next reply answers: instructions and turns, without the last reply."""
        head = [Message(role="system", content=self.system)] if self.system else []
        turns = self.turns
        return head + (turns[:-1] if turns and turns[-1].role == "assistant" else turns)

    def _line(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(line)
            elif line:
                self.turns.append(Message(role="user", content=line))
                self._reply()
        except AlignkitError as error:
            self.screen.put(f"  {visible_line(str(error))}", BOLD)

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise DataError(
                f"no command /{name}{did_you_mean(name, COMMANDS)}", hint="/help lists them"
            )
        COMMANDS[name](self, rest.strip())

    def _reply(self) -> None:
        replies = [self._draw(name) for name in self._order()]
        self.last = replies[0] if len(replies) == 1 else self._choose(replies)
        self.turns.append(Message(role="assistant", content=self.last.text))

    def _order(self) -> list[str]:
        """Who speaks first is hashed anew for each reply."""
        turn = (self.seed, self.drawn, len(self.turns))
        return sorted(self.speakers, key=lambda name: digest("chat", *turn, name))

    def _draw(self, name: str) -> Reply:
        seed = self.seed + self.drawn
        self.drawn += 1
        label = "reply" if len(self.speakers) == 1 else "a reply"
        self.screen.put(f"[{label}]", DIM)
        text = self.speakers[name](self.prompt(), seed, lambda words: self.piece(visible(words)))
        self.screen.put()
        return Reply(text, name, seed)

    def _choose(self, replies: list[Reply]) -> Reply:
        while (typed := self.screen.read("better: 1, 2, 0 neither > ").strip()) not in CHOICES:
            self.screen.put("  type 1, 2 or 0")
        better = CHOICES[typed]
        self._collect().choose(self.prompt(), replies, better)
        self.screen.put("  saved", DIM)
        return replies[better or 0]

    def _collect(self) -> Feedback:
        if self.feedback is None:
            raise DataError("nothing is collected", hint="Start with --collect FILE")
        return self.feedback

    def _replied(self) -> Reply:
        if self.last is None or not self.turns:
            raise DataError("there is no reply yet", hint="Say something first")
        return self.last

    def _thumb(self, good: bool) -> None:
        self._collect().thumb(self.prompt(), self._replied(), good)
        self.screen.put("  saved", DIM)

    def _fix(self, text: str) -> None:
        if not text:
            raise DataError("the better words are missing", hint="/fix TEXT")
        self._collect().correct(self.prompt(), self._replied(), text)
        self.turns[-1] = Message(role="assistant", content=text)
        self.screen.put("  saved", DIM)

    def _again(self, _rest: str) -> None:
        self._replied()
        self.turns.pop()
        self._reply()

    def _start_over(self, _rest: str) -> None:
        self.turns, self.last = [], None

    def _instruct(self, text: str) -> None:
        self.system = text
        self._start_over("")

    def _take_back(self, _rest: str) -> None:
        self._replied()
        self.turns, self.last = self.turns[:-2], None

    def _help(self, _rest: str) -> None:
        self.screen.put(HELP)

    def _quit(self, _rest: str) -> None:
        raise Quit


CHOICES: dict[str, int | None] = {"1": 0, "2": 1, "0": None}
COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "good": lambda chat, _rest: chat._thumb(True),
    "bad": lambda chat, _rest: chat._thumb(False),
    "fix": Chat._fix,
    "regen": Chat._again,
    "system": Chat._instruct,
    "new": Chat._start_over,
    "undo": Chat._take_back,
    "help": Chat._help,
    "quit": Chat._quit,
}
