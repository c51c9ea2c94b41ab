"""Run a chat with one model, or with two anonymous ones at once, line by line.

A model is a function that streams its completion and returns it; loading it stays outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from alignkit.collect.feedback import ChatCompletion, Feedback
from alignkit.collect.markdown_ansi import BOLD, DIM
from alignkit.collect.secret import digest
from alignkit.collect.terminal import Quit, Screen
from alignkit.data.records import Message
from alignkit.errors import AlignkitError, DataError, did_you_mean
from alignkit.store.visible import visible, visible_line

# (conversation, seed, callback for each piece of text) -> the whole completion
ChatModel = Callable[[list[Message], int, Callable[[str], None]], str]

HELP = """\
  /good, /bad     rate the last completion
  /fix TEXT       correct it; the conversation continues with your text
  /regen          draw another completion of the same prompt
  /system TEXT    set the system prompt and start over
  /new            start over            /undo   remove the last exchange
  /help           show this help        /quit   stop
"""


@dataclass
class Chat:
    """A conversation with one or two models; `stream` prints a piece of a completion."""

    models: Mapping[str, ChatModel]
    screen: Screen
    seed: int
    stream: Callable[[str], None]
    feedback: Feedback | None = None
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    last: ChatCompletion | None = None
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
        """Return the prompt of the next completion: system prompt and turns up to the user's."""
        head = [Message(role="system", content=self.system)] if self.system else []
        turns = self.turns
        return head + (turns[:-1] if turns and turns[-1].role == "assistant" else turns)

    def _line(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(line)
            elif line:
                self.turns.append(Message(role="user", content=line))
                self._complete()
        except AlignkitError as error:
            self.screen.put(f"  {visible_line(str(error))}", BOLD)

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise DataError(
                f"unknown command /{name}{did_you_mean(name, COMMANDS)}", hint="/help lists them"
            )
        COMMANDS[name](self, rest.strip())

    def _complete(self) -> None:
        drawn = [self._draw(name) for name in self._order()]
        self.last = drawn[0] if len(drawn) == 1 else self._choose(drawn)
        self.turns.append(Message(role="assistant", content=self.last.text))

    def _order(self) -> list[str]:
        """Return the models in an order that is hashed anew for each turn."""
        turn = (self.seed, self.drawn, len(self.turns))
        return sorted(self.models, key=lambda name: digest("chat", *turn, name))

    def _draw(self, name: str) -> ChatCompletion:
        seed = self.seed + self.drawn
        self.drawn += 1
        self.screen.put("[completion]", DIM)
        text = self.models[name](self.prompt(), seed, lambda piece: self.stream(visible(piece)))
        self.screen.put()
        return ChatCompletion(text, name, seed)

    def _choose(self, drawn: list[ChatCompletion]) -> ChatCompletion:
        while (typed := self.screen.read("better: 1, 2, 0 neither > ").strip()) not in CHOICES:
            self.screen.put("  type 1, 2 or 0")
        better = CHOICES[typed]
        self._collect().choose(self.prompt(), drawn, better)
        self.screen.put("  saved", DIM)
        return drawn[better or 0]

    def _collect(self) -> Feedback:
        if self.feedback is None:
            raise DataError("no file to collect into", hint="Start with --collect FILE")
        return self.feedback

    def _completed(self) -> ChatCompletion:
        if self.last is None or not self.turns:
            raise DataError("there is no completion yet", hint="Write to the model first")
        return self.last

    def _thumb(self, good: bool) -> None:
        self._collect().thumb(self.prompt(), self._completed(), good)
        self.screen.put("  saved", DIM)

    def _fix(self, text: str) -> None:
        if not text:
            raise DataError("the corrected text is missing", hint="/fix TEXT")
        self._collect().correct(self.prompt(), self._completed(), text)
        self.turns[-1] = Message(role="assistant", content=text)
        self.screen.put("  saved", DIM)

    def _regenerate(self, _rest: str) -> None:
        self._completed()
        self.turns.pop()
        self._complete()

    def _start_over(self, _rest: str) -> None:
        self.turns, self.last = [], None

    def _set_system(self, text: str) -> None:
        self.system = text
        self._start_over("")

    def _undo(self, _rest: str) -> None:
        self._completed()
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
    "regen": Chat._regenerate,
    "system": Chat._set_system,
    "new": Chat._start_over,
    "undo": Chat._undo,
    "help": Chat._help,
    "quit": Chat._quit,
}
