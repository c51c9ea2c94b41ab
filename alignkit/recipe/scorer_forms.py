"""Name every scorer and judge: how users write it, and the module that opens it.

Recipes, options of the command line and rewards of PPO read their values by this one table. To add
a scorer or a judge: write one module and one line in FORMS (docs/CONTRIBUTING.md shows it). The
table lies below the rooms that score, because the recipe's reader refuses an unknown name by its
line and column, before torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

# What follows the colon. A recipe resolves runs, files and functions; it leaves a text alone.
Argument = Literal["nothing", "run", "function", "files", "judges", "text"]
By = Literal["scorer", "judge"]  # what a setting takes; every scorer is also a judge


@dataclass(frozen=True)
class Form:
    """How one kind is written, and where it is opened.

    `scorer`: the module whose `open_scorer(spec, resources)` gives a scorer; None where the kind
    can only compare. `judge`: the module whose `open_judge(spec, resources)` gives a judge; None
    where the higher score wins. `usage`: what to write, for messages.
    """

    usage: str
    argument: Argument = "nothing"
    scorer: str | None = None
    judge: str | None = None


class Spec(NamedTuple):
    """A value taken apart: a kind of FORMS, and what stands after its colon."""

    kind: str
    argument: str

    @property
    def form(self) -> Form:
        return FORMS[self.kind]


def is_function(value: str) -> bool:
    """Whether the value is of the form module:function."""
    return FUNCTION.fullmatch(value) is not None


def parse(text: str, *, functions: bool = True) -> Spec:
    """Take a value apart; what no form of the table explains names a reward run or stage.

    `functions`: whether a bare `module:function` is one.
    """
    kind, colon, argument = text.partition(":")
    form = FORMS.get(kind)
    # Without a colon `reward` is a stage that is called so; `gold` needs nothing after it.
    if form is not None and (colon or form.argument == "nothing"):
        return Spec(kind, argument)
    return Spec("function" if functions and is_function(text) else "reward", text)


def known(by: By) -> list[str]:
    """Kinds that a setting takes."""
    return [kind for kind, form in FORMS.items() if by == "judge" or form.scorer is not None]


def mistake(text: str, by: By, *, functions: bool = True) -> tuple[str, str] | None:
    """What is wrong with a value as it is written, and the remedy; None where nothing is."""
    spec = parse(text, functions=functions)
    if spec.form.scorer is None and by == "scorer":
        return (
            f"{text!r} only compares two completions; here each one needs a score",
            "Known: " + ", ".join(FORMS[kind].usage for kind in known(by)),
        )
    if spec.form.argument == "nothing" and spec.argument:
        return (
            f"the {spec.kind} judge takes nothing after its name, not {spec.argument!r}",
            f"A function in a module of yours that is called {spec.kind}: function:{text}",
        )
    if spec.form.argument != "nothing" and not spec.argument.strip(",+/"):
        return f"{text!r} lacks what follows the colon", f"Write {spec.form.usage}"
    if spec.kind == "function" and not is_function(spec.argument):
        return f"judge {spec.argument!r} names no function", "Write module:function"
    if spec.kind == "panel" and len(members(spec.argument)) < 2:
        return "a panel needs two or more judges", f"Write {spec.form.usage}"
    return next(filter(None, (mistake(one, by) for one in _members(spec))), None)


def members(argument: str) -> list[str]:
    """The judges of a panel, as written."""
    return [member for member in argument.split("+") if member]


def paths(argument: str) -> list[str]:
    """The files of a judge, as written."""
    return [path for path in argument.split(",") if path]


def parts(text: str, *, functions: bool = True) -> list[tuple[Argument, str]]:
    """The runs, files and functions that a value names, panels' members included."""
    found: list[tuple[Argument, str]] = []

    def note(kind: Argument, part: str) -> str:
        found.append((kind, part))
        return part

    respelled(text, note, functions=functions)
    return found


def respelled(text: str, replace: Callable[[Argument, str], str], *, functions: bool = True) -> str:
    """The value with each run, file and function it names replaced."""
    spec = parse(text, functions=functions)
    if spec.form.argument == "judges":
        return f"{spec.kind}:" + "+".join(respelled(m, replace) for m in members(spec.argument))
    if spec.form.argument == "files":
        named = [replace("files", path) for path in paths(spec.argument)]
        return f"{spec.kind}:" + ",".join(named)
    if spec.form.argument in ("run", "function"):
        prefix = text.removesuffix(spec.argument)  # `reward:`, or nothing
        return prefix + replace(spec.form.argument, spec.argument)
    return text


def _members(spec: Spec) -> list[str]:
    return members(spec.argument) if spec.form.argument == "judges" else []


_REFERENCE = "alignkit.judges.reference"

FORMS: dict[str, Form] = {
    # Scorers: each gives one completion a score.
    "gold": Form("gold", scorer="alignkit.scorers.gold"),
    "reward": Form(
        "a reward run's directory",
        "run",
        "alignkit.scorers.reward_run",
        "alignkit.judges.reward_run",
    ),
    "function": Form(
        "module:function", "function", "alignkit.scorers.function", "alignkit.judges.function"
    ),
    "http": Form("http://HOST/PATH", "text", "alignkit.scorers.http"),
    "https": Form("https://HOST/PATH", "text", "alignkit.scorers.http"),
    # Judges that need both completions at once.
    "llm": Form("llm:MODEL@URL", "text", judge="alignkit.judges.llm"),
    "human": Form("human:VOTES,CANDIDATES", "files", judge="alignkit.judges.human"),
    "bleu": Form("bleu:FILE", "files", judge=_REFERENCE),
    "chrf": Form("chrf:FILE", "files", judge=_REFERENCE),
    "rouge": Form("rouge:FILE", "files", judge=_REFERENCE),
    "exact": Form("exact:FILE", "files", judge=_REFERENCE),
    "f1": Form("f1:FILE", "files", judge=_REFERENCE),
    "panel": Form("panel:A+B", "judges", judge="alignkit.judges.panel"),
}
