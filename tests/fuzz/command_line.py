"""The whole command line, fed with mutations of valid files.

    python -m tests.fuzz cli --minutes 10 [--seed 0] [--only "data check"] [--case 1234]

Commands and what they take are read off click's own tree, so that a new command is covered as it
is. Every case is drawn from the seed and its number alone. It goes through the program's own
`main`, in this process; what is looked for: an internal error, a traceback, an exit code that is
none of 0, 1 and 2, something written by a command that refused (exit 2), more than ten seconds.
What is found is kept, with the command and its files, in the directory that is named at the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click

from alignkit.cli import cli, main
from alignkit.data.records import to_json
from alignkit.recipe.settings import CONFIGS, Reads
from tests.fuzz.files import SUFFIXES, families, records, written
from tests.fuzz.mutate import harmed, rows_harmed

MOST_SECONDS = 10.0
GIVEN_UP = 30.0  # a case that takes longer is stopped
CODES = (0, 1, 2)

# Parameters by what they are for. Whatever else takes a file is read.
OUTPUTS = {"output", "html", "log", "export_html", "work", "runs_dir"}
MODELS = {"model", "run", "policy", "reward_model", "reference_model", "versus", "policies"}
# Left alone: what opens a browser, a port or a connection, waits for a person, or is a secret.
NEVER = {
    "open_browser", "web", "host", "port", "allow_host", "endpoint", "endpoint_model", "reward_url",
    "rollout_url", "judges", "report_to", "debug", "help", "model_name_or_path", "revision",
    "work", "runs_dir", "resume_anyway", "fresh", "dry_run", "until", "only", "method",
    "reward_models", "alarm_judge", "reward", "temperatures", "policies", "attn_implementation",
}  # fmt: skip
# What a parameter's files are, where more is known than that they are files.
PREFERRED: dict[str, tuple[str, ...]] = {
    "recipe": ("recipe",),
    "config_file": ("settings",),
    "chat_template": ("template",),
    "undo": ("log",),
    "labels": ("labelled",),
    "references": ("replies",),
    "candidates": ("candidates",),
    "gold": ("candidates",),
    "collect": ("votes",),
    "difficulty": ("labelled",),
    "reg_rows": ("labelled",),
    "swapped": ("judged",),
}
PREFERRED_BY: dict[str, tuple[str, ...]] = {
    "sft": ("demonstration",),
    "dpo": ("votes",),
    "reward": ("votes",),
    "eval perplexity": ("demonstration",),
    "eval winrate": ("judged", "votes"),
    "eval fairness": ("judged",),
    "eval replies": ("replies",),
    "eval drift": ("replies", "records", "judged"),
    "eval reward": ("votes",),
    "agreement": ("own", "own", "votes"),
    "rank collect": ("candidates", "prompt", "ranking"),
    "data clean": ("demonstration", "records"),
    "rank import": ("returned", "votes"),
    "rank export": ("event", "candidates"),
    "data pairs": ("votes",),
}
# Values of options that take a text.
TEXTS: dict[str, tuple[str, ...]] = {
    "format_": ("alpaca", "preference", "ranking", "alkignit", "messages", "sharegpt"),
    "format": ("alpaca", "preference", "ranking", "judgement", "argilla"),
    "to": ("alpaca", "preference", "alkignit", "sharegpt", "rankings"),
    "columns": ("prompt=prompt", "prompt=prompt", "chosen=output_1", "prompt=extra.a.b", "x"),
    "parts": ("train=0.9,test=0.1", "a=1", "a=2,b=1", "a=x", "a=0,b=0", "=1", "a=-1,b=2"),
    "stratify": ("source", "extra.x", "label"),
    "by": ("id", "annotator", "label", "extra.source", "source.format", "kind"),
    "repairs": ("whitespace", "mojibake", "near-duplicates", "pii", "pii-names", "x"),
    "drops": ("identical", "malformed", "empty", "template", "x"),
    "fill": ("NAME=x", "x", "=", "a=b"),
    "patterns": ("a=>b", "(a+)+$=>x", "[=>x", "=>", "x"),
    "templates": ("Q: {prompt}", "{prompt}{prompt}", "x"),
    "allow": ("duplicate", "mixed", "x"),
    "group": ("judge", "judge", "group", "extra.g"),
    "swaps": ("he:she", "x", ":", "a:a"),
    "cluster": ("judge", "group", "x"),
    "covariates": ("length", "style", "length,headers", "x"),
    "lc_slope": ("free", "0.5", "nan", "inf", "x"),
    "settings": ("max_steps=1", "lr=1", "sft.beta=0.2", "=", "x", "backbone.lora_r=0", "a.b.c=[1"),
    "a": ("x", "y", "z"),
    "b": ("y", "x", "z"),
    "baseline": ("y", "z"),
}
# Options that a command does little without.
USUAL = {"group", "candidates", "a", "b", "columns", "undo"}
WORDS = ("x", "", "ü", "a b", "0", "-1", "nan", "../x", "\u202e", "x" * 300)
NUMBERS = ("1", "2", "3", "7", "1", "2", "0.5", "0.1", "0", "-1", "nan", "inf", "1e400", "x", "100")
LINES = ("1\n", "2 1\n", "a>b\n", "s\n", "u\n", "q\n", "?\n", "\n", "/good\n", "/quit\n", "hi\n")


# --- the commands --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A command that takes a file, by the words that call it."""

    words: tuple[str, ...]
    command: click.Command

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def stage(self) -> bool:
        """Whether it is a stage with `--dry-run`."""
        return self.words == (self.command.name,) and self.command.name in CONFIGS

    @property
    def is_slow(self) -> bool:
        """Whether it loads or at least plans a model."""
        arguments = {p.name for p in self.command.params if isinstance(p, click.Argument)}
        return self.stage or bool(arguments & {"model", "run", "recipe"})


def subjects(group: click.Group = cli, words: tuple[str, ...] = ()) -> Iterator[Subject]:
    """Every command that takes a file, found in click's tree."""
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if isinstance(command, click.Group):
            yield from subjects(command, (*words, word))
        elif command is not None:
            subject = Subject((*words, word), command)
            if any(reads(parameter, subject) for parameter in command.params):
                yield subject


def reads(parameter: click.Parameter, subject: Subject) -> bool:
    """Whether a parameter is a file that is read."""
    name = str(parameter.name)
    if name in OUTPUTS | MODELS:
        return False
    if subject.stage and name in CONFIGS[str(subject.command.name)].model_fields:
        return name in dict(CONFIGS[str(subject.command.name)].marked(Reads))
    named = f"{parameter.metavar or ''} {getattr(parameter, 'help', '') or ''}"
    return (
        isinstance(parameter.type, click.Path)
        or name in ("files", "file", "sources", "chat_template")
        or parameter.metavar in ("FILE", "LOG")
        or named.startswith("FILE")
    )


# --- one case ------------------------------------------------------------------------------------


@dataclass
class Case:
    """One command line with its files, drawn from a number."""

    subject: Subject
    number: int
    draw: random.Random
    place: Path
    quick: bool = False  # without models
    arguments: list[str] = field(default_factory=list)
    files: int = 0

    def build(self) -> None:
        """Draw the command line, and write the files it names."""
        self.arguments = [*self.subject.words]
        for parameter in self.subject.command.params:
            if parameter.name in NEVER or (self.quick and parameter.name in MODELS):
                continue
            if isinstance(parameter, click.Argument):
                self.arguments += self.values(parameter)
            elif self.wanted(parameter):
                for value in self.values(parameter):
                    self.arguments += [_longest(parameter), value] if value is not None else []
                if _is_flag(parameter):
                    self.arguments.append(self.draw.choice(_spellings(parameter)))
        self.arguments += self.fixed()

    def wanted(self, parameter: click.Parameter) -> bool:
        """Whether this option is given: always what is required or is read by a stage's nature."""
        if parameter.required or parameter.name == "output":
            return True
        if self.subject.stage:
            asked = CONFIGS[self.subject.name].model_fields.get(str(parameter.name))
            return bool(asked and asked.is_required()) or self.draw.random() < 0.02
        return self.draw.random() < (0.6 if parameter.name in USUAL else 0.07)

    def values(self, parameter: click.Parameter) -> list[Any]:
        if _is_flag(parameter):
            return []
        name = str(parameter.name)
        several = parameter.nargs == -1 or parameter.multiple
        count = self.draw.choice((1, 1, 1, 2, 3)) if several else 1
        return [self.value(parameter, name) for _ in range(count)]

    def value(self, parameter: click.Parameter, name: str) -> str:
        if name in OUTPUTS:
            return self.output(name)
        if name in MODELS:
            return self.draw.choice(("tiny", "tiny", "tiny", "gone", "."))
        if reads(parameter, self.subject):
            return self.file(name)
        if isinstance(parameter.type, click.Choice):
            return str(self.draw.choice(parameter.type.choices))
        if (parameter.metavar or "").startswith("["):  # the choices of a stage's setting
            return self.draw.choice(str(parameter.metavar).strip("[]").split("|"))
        if name in ("annotators", "annotator"):
            return self.draw.choice(("ann", "bob", "ann", *WORDS))
        if name in TEXTS and self.draw.random() < 0.93:
            return self.draw.choice(TEXTS[name])
        numeric = isinstance(
            parameter.type, click.types.IntParamType | click.types.FloatParamType
        ) or parameter.metavar in ("INTEGER", "NUMBER")
        return self.draw.choice(NUMBERS if numeric else WORDS)

    def output(self, name: str) -> str:
        if name == "output" and self.subject.name == "data split":
            return self.draw.choice(("out/{}.jsonl", "{}.csv", "out"))
        if self.subject.stage or name == "export_html":
            return "out"
        endings = SUFFIXES if self.subject.words[0] == "data" else (".json", ".jsonl")
        return "out" + self.draw.choice(endings)

    def file(self, name: str) -> str:
        """A file of a family that fits, mostly, harmed in some way, mostly."""
        wanted = PREFERRED.get(name) or PREFERRED_BY.get(self.subject.name) or ("records",)
        everything = families()
        family = self.draw.choice(wanted if self.draw.random() < 0.85 else sorted(everything))
        content = self.draw.choice(everything[family])
        self.files += 1
        path = self.place / f"f{self.files}{self.suffix(family)}"
        if self.draw.random() < 0.5:  # before it is compressed, or made a table
            content = rows_harmed(content, self.draw)
        made = written(content, path)
        if self.draw.random() < 0.1:  # two sorts in one file
            made += written(
                self.draw.choice(everything[self.draw.choice(sorted(everything))]), path
            )
        if self.draw.random() < 0.5:
            made = harmed(made, self.draw)
        if self.draw.random() < 0.02:
            return self.draw.choice((".", "gone.jsonl", "own/er", "", "x" * 300))
        path.write_bytes(made)
        return path.name

    def suffix(self, family: str) -> str:
        usual = {"recipe": ".yaml", "settings": ".yaml", "template": ".jinja", "returned": ".json"}
        if family in usual and self.draw.random() < 0.9:
            return usual[family]
        return self.draw.choice((*[".jsonl"] * 12, *SUFFIXES, *SUFFIXES, ".yaml"))

    def fixed(self) -> list[str]:
        """What keeps a command cheap, and from waiting for somebody."""
        name = self.subject.name
        if self.subject.stage or name == "run":
            real = self.subject.stage and self.draw.random() < 0.03
            steps = name in ("sft", "reward", "dpo")
            cheap = ["--max-steps", "1", "--quantization", "none"] if steps else ["--dry-run"]
            more = {"ppo": ["--reward-model", "gold"], "rloo": ["--reward-model", "gold"]}
            return [*(cheap if real else ["--dry-run"]), *more.get(name, [])]
        return {
            "rank collect": ["--terminal"] if self.draw.random() < 0.6 else ["--export-html", "p"],
            "chat": ["--max-new-tokens", "2", "--quantization", "none"],
            "data augment": ["--method", self.draw.choice(("order", "template"))],
            "data balance": ["--method", self.draw.choice(("up", "down", "weight"))],
        }.get(name, [])


def _is_flag(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.is_flag


def _longest(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len)


def _spellings(parameter: click.Parameter) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]


# --- running -------------------------------------------------------------------------------------


class TooLongError(BaseException):
    """The case was stopped; no handler of the program catches this."""


@dataclass(frozen=True)
class Outcome:
    """What a case left: `wrong` says what is wrong with it, empty when nothing is."""

    code: int
    said: str
    seconds: float
    wrong: str


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TooLongError in the block after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def as_a_program(arguments: Sequence[str], place: Path, typed: str) -> Iterator[io.StringIO]:
    """The process as the program finds it: arguments, directory, streams, environment."""
    said = io.StringIO()
    before = sys.argv, sys.stdin, os.getcwd(), dict(os.environ), tempfile.tempdir
    crashes = place.parent / "crashes"
    crashes.mkdir(exist_ok=True)
    os.chdir(place)
    sys.argv, sys.stdin, tempfile.tempdir = (
        ["alignkit", *arguments],
        io.StringIO(typed),
        str(crashes),
    )
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said
    finally:
        sys.argv, sys.stdin, directory, environment, tempfile.tempdir = before
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)


def outcome_of(case: Case) -> Outcome:
    """Run a case, and say what is wrong with how it went."""
    before = everything_in(case.place)
    typed = "".join(case.draw.choice(LINES) for _ in range(case.draw.randrange(6)))
    began, spent = time.monotonic(), time.process_time()
    code, wrong = 0, ""
    with as_a_program(case.arguments, case.place, typed) as said:
        try:
            with within(GIVEN_UP):
                main(list(case.arguments))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except TooLongError:
            wrong = f"longer than {GIVEN_UP:.0f} seconds"
        except BaseException as error:
            wrong = f"{type(error).__name__} came out of main"
    seconds = time.monotonic() - began
    text = said.getvalue()
    # Processor seconds: what else the machine does is no fault of a command's.
    wrong = wrong or _judged(code, text, time.process_time() - spent)
    if not wrong and code == 2 and (new := sorted(everything_in(case.place) ^ before)):
        wrong = f"refused, and wrote {new[0][0]}"
    return Outcome(code, text, seconds, wrong)


def _judged(code: int, said: str, seconds: float) -> str:
    if "internal error" in said:
        report = re.search(r"A report without your data is in (\S+?)\. Please", said)
        return _place_of_crash(Path(report[1]).read_text() if report else "", said)
    if "Traceback (most recent" in said:
        return "a traceback"
    if code not in CODES:
        return f"exit code {code}"
    return f"{seconds:.0f} seconds" if seconds > MOST_SECONDS else ""


def _place_of_crash(report: str, said: str) -> str:
    """`internal error: KeyError at alignkit/x.py:3 in f`: one crash is one such text."""
    kind = re.search(r"internal error: (\w+)", said)
    own = re.findall(r"^  (alignkit/\S+ in \S+)", report, re.MULTILINE)
    return f"internal error: {kind[1] if kind else '?'} at {own[-1] if own else '?'}"


def everything_in(place: Path) -> set[tuple[str, int]]:
    """Every file below a place, by name and size."""
    return {
        (str(path.relative_to(place)), path.stat().st_size if path.is_file() else -1)
        for path in place.rglob("*")
    }


# --- many cases ----------------------------------------------------------------------------------


def case_of(
    seed: int, number: int, found: Sequence[Subject], place: Path, *, quick: bool = False
) -> Case:
    """The case of a number: its command, its arguments and its files, the same each time."""
    draw = random.Random(f"{seed}:{number}")
    weights = [1 if subject.is_slow else 6 for subject in found]
    (subject,) = draw.choices(found, weights)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (place / "rankings.jsonl").write_bytes(
        b"".join(to_json(record) for record in records("preference"))
    )
    case = Case(subject, number, draw, place, quick)
    case.build()
    return case


@dataclass
class Tally:
    """What happened to each command."""

    cases: Counter[str] = field(default_factory=Counter)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[int]] = field(default_factory=dict)

    def note(self, case: Case, outcome: Outcome) -> bool:
        """Count a case; whether something new is wrong with it."""
        name = case.subject.name
        self.cases[name] += 1
        self.codes[name, outcome.code] += 1
        self.seconds[name] += outcome.seconds  # type: ignore[assignment]
        if not outcome.wrong:
            return False
        told = f"{name}: {outcome.wrong}"
        self.wrong.setdefault(told, []).append(case.number)
        return len(self.wrong[told]) == 1

    def lines(self) -> Iterator[str]:
        """The summary, one line a command, and then what is wrong."""
        for name, count in sorted(self.cases.items()):
            codes = " ".join(f"{code}:{self.codes[name, code]}" for code in CODES)
            yield f"{name:18} {count:6} cases  {self.seconds[name]:7.1f} s  exit {codes}"
        for told, numbers in sorted(self.wrong.items()):
            yield f"WRONG {told}  ({len(numbers)} times, first case {numbers[0]})"


def keep(case: Case, outcome: Outcome, kept: Path) -> None:
    """The files of a case that went wrong, with the command and what was said."""
    target = kept / f"case-{case.number}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(case.place, target / "files", symlinks=True)
    text = f"alignkit {' '.join(map(repr, case.arguments))}\n{outcome.wrong}\n\n{outcome.said}"
    (target / "command.txt").write_text(text, encoding="utf-8", errors="replace")


def run_cases(
    seed: int,
    numbers: Iterator[int],
    place: Path,
    kept: Path | None = None,
    only: str | None = None,
    *,
    quick: bool = False,
) -> Tally:
    """Run the cases of these numbers; what goes wrong for the first time is kept.

    `quick` leaves out the commands that plan or load a model.
    """
    found = [subject for subject in subjects() if only is None or subject.name == only]
    found = [subject for subject in found if not (quick and subject.is_slow)]
    tally = Tally()
    for number in numbers:
        case = case_of(seed, number, found, place / "case", quick=quick)
        shown = case.place.parent / "before"
        shutil.rmtree(shown, ignore_errors=True)
        if kept is not None:
            shutil.copytree(case.place, shown)
        outcome = outcome_of(case)
        if tally.note(case, outcome) and kept is not None:
            shutil.rmtree(case.place, ignore_errors=True)
            shutil.copytree(shown, case.place)
            keep(case, outcome, kept)
            print(f"case {number}: {case.subject.name}: {outcome.wrong}", flush=True)  # noqa: T201
    return tally


def for_minutes(minutes: float, start: int = 0) -> Iterator[int]:
    """Numbers from `start` until the time is over."""
    end = time.monotonic() + 60 * minutes
    number = start
    while time.monotonic() < end:
        yield number
        number += 1


def fuzz(options: Mapping[str, Any]) -> int:
    """The command of this module; its exit code."""
    import transformers  # noqa: F401  so that no case pays for it
    import trl.trainer.dpo_config
    import trl.trainer.sft_config  # noqa: F401

    from alignkit.run.execute import quiet_libraries

    quiet_libraries()
    kept = Path(options["kept"]).resolve()
    kept.mkdir(parents=True, exist_ok=True)
    one = options["case"]
    numbers = iter([one]) if one is not None else for_minutes(options["minutes"], options["start"])
    with tempfile.TemporaryDirectory() as scratch:
        tally = run_cases(options["seed"], numbers, Path(scratch).resolve(), kept, options["only"])
    for line in tally.lines():
        print(line)  # noqa: T201
    print(f"{sum(tally.cases.values())} cases, {len(tally.wrong)} faults; kept in {kept}")  # noqa: T201
    return 1 if tally.wrong else 0
