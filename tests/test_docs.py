"""Documents say what is there: their commands parse, their files, names and links exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from click.parser import _OptionParser

from alignkit.cli import cli, hyphenate
from tests.module_tree import MARKS, PAGE, tree

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alignkit"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Its lines tell of versions past, whose options and files may be gone.
HISTORY = "CHANGELOG.md"
CURRENT = [page for page in PAGES if page.name != HISTORY]

# Options of other programs that our pages name: vLLM's, pip's, make's, other trainers'.
OTHERS = {"--max-lora-rank", "--enable-lora", "--lr", "--load-in-4bit", "--nproc-per-node"}
# Files that a person has or a run leaves, by their ends and places.
MADE = re.compile(
    r"runs/|w/|\.(jsonl|json|html|sqlite|ya?ml|csv|txt|gz|zst|parquet|partial)$|[A-Z]{3,}|\*"
)


# --- commands ------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A command as a page shows it; `whole` ones can be typed as they stand."""

    page: str
    line: int
    text: str
    whole: bool


def commands(page: Path) -> Iterator[Command]:
    """From lines of shell, fenced or indented, and from inline code."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "  ")  # lines that go on
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            fenced = not fenced
        shell = re.match(r"(?:\$ )?((?:\w+=\S+ )*alignkit .*)", line.strip())
        if shell and (fenced or line.startswith("    ")):
            yield Command(page.name, number, shell[1], "…" not in line)
        elif not fenced:
            for inline in re.findall(r"`(alignkit [^`]*)`", line):
                yield Command(page.name, number, inline, False)


ALL = [command for page in CURRENT for command in commands(page)]


def test_pages_hold_commands() -> None:
    """Else the tests below would pass on nothing."""
    assert len(ALL) > 50
    assert sum(command.whole for command in ALL) > 25


@pytest.mark.parametrize("command", ALL, ids=lambda c: f"{c.page}:{c.line}")
def test_every_command_parses(command: Command) -> None:
    """By click's own parser, without running: options exist, and whole commands lack nothing."""
    words = shlex.split(command.text, comments=True)
    while "=" in words[0]:
        words = words[1:]  # a variable set for the command
    words = [word for word in hyphenate(words[1:]) if word not in ("…", "...")]
    for end in ("|", ">", "&&", ";"):
        words = words[: words.index(end)] if end in words else words
    found, context, rest = resolved(words)
    if isinstance(found, click.Group):
        assert not rest or rest == ["--help"], f"{command.text}: no command {rest[0]!r}"
        return
    parser: _OptionParser = found.make_parser(context)
    given, _, _ = parser.parse_args(list(rest))
    for parameter in found.params:
        value = given.get(parameter.name)
        if command.whole and parameter.required and "--help" not in rest:
            assert value not in (None, click.core.UNSET), f"{command.text} lacks {parameter.name}"
        if isinstance(parameter.type, click.Choice) and isinstance(value, str) and value.islower():
            assert value in parameter.type.choices, f"{command.text}: {value}"


def resolved(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that words lead to, its context, and the words after its name."""
    found: click.Command = cli
    context = click.Context(cli, info_name="alignkit", resilient_parsing=True)
    while words and isinstance(found, click.Group):
        found.parse_args(context, list(words))  # a group may have a command for what is no command
        words = [*context._protected_args, *context.args]
        inner = found.get_command(context, words[0]) if words else None
        if inner is None:
            break
        found, words = inner, words[1:]
        context = click.Context(inner, parent=context, resilient_parsing=True)
    return found, context, words


# --- options -------------------------------------------------------------------------------------


@cache
def known_options() -> frozenset[str]:
    """Every option of every command, and those of benchmarks and scripts."""
    names = {"--help", "--version"}
    open_: list[click.Command] = [cli]
    while open_:
        command = open_.pop()
        context = click.Context(command)
        for parameter in command.params:
            names |= {*parameter.opts, *parameter.secondary_opts}
        if isinstance(command, click.Group):
            inner = (command.get_command(context, n) for n in command.list_commands(context))
            open_ += [each for each in inner if each is not None]
    for folder in ("benchmarks", "tests", ".ci"):
        for file in (ROOT / folder).rglob("*.py"):
            names |= set(re.findall(r'"(--[a-z][a-z0-9-]*)"', file.read_text(encoding="utf-8")))
    return frozenset(names)


@pytest.mark.parametrize("page", CURRENT, ids=lambda p: p.name)
def test_every_option_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {f"--{name}" for name in re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]*)", text)}
    assert set(hyphenate(sorted(named))) - known_options() - OTHERS == set()


# --- files, modules, functions, links ------------------------------------------------------------


def inline_code(page: Path) -> set[str]:
    """What stands in backticks, outside of fences."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_resolves(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda p: p.name)
def test_every_file_of_the_project_exists(page: Path) -> None:
    """A path is one with a folder, or the name of a Python file."""
    missing = []
    for code in inline_code(page):
        path = code.partition(" ")[0].partition("::")[0].rstrip("/,")
        a_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?|\w+\.py", path)
        in_project = path.split("/")[0] in {entry.name for entry in ROOT.iterdir()}
        if a_path and (in_project or (path.endswith(".py") and not MADE.search(path))):
            ours = "/" in path and any((root / path).exists() for root in (ROOT, PACKAGE))
            if not ours and not ("/" not in path and any(ROOT.rglob(path))):
                missing.append(code)
    assert missing == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda p: p.name)
def test_every_module_exists(page: Path) -> None:
    for name in inline_code(page):
        if re.fullmatch(r"(alignkit|tests|benchmarks)(\.\w+)+", name.removeprefix("python -m ")):
            path = ROOT.joinpath(*name.removeprefix("python -m ").split("."))
            assert path.is_dir() or path.with_suffix(".py").is_file(), name


@pytest.mark.parametrize("page", [PAGE], ids=lambda p: p.name)
def test_every_function_of_a_walk_exists(page: Path) -> None:
    defined = {
        node.name
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    named = {code[:-2] for code in inline_code(page) if re.fullmatch(r"\w+\(\)", code)}
    assert len(named) > 20
    assert named - defined == set()


def test_the_tree_is_the_package() -> None:
    """After a change of a module's name or first sentence: `python -m tests.module_tree`."""
    (shown,) = MARKS.findall(PAGE.read_text(encoding="utf-8"))
    assert shown == tree()


def test_every_module_says_what_it_is_for() -> None:
    for line in tree().splitlines()[2:-1]:
        assert len(line.split()) > 3, line
