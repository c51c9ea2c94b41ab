"""docs/CONTRIBUTING.md does what it says: its changes are applied to a copy, its commands run.

A fenced block is a `diff` (applied), a file (`jsonl` or `yaml` with a name), a `console` session
(run, and what stands under a command is in what it prints) or `python` (run).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
ORDER = [
    "Set up", "Run the checks", "Add a loss", "Add a data format", "Add a judgement format",
    "Add a scorer or a judge", "Add a tuning method", "Add a stage",
]  # fmt: skip
# Sections whose changes are made here; another way of adding things has a test of its own.
ADDED = [
    "Add a loss",
    "Add a data format",
    "Add a judgement format",
    "Add a tuning method",
    "Add a stage",
]


class Block(NamedTuple):
    language: str
    name: str
    text: str


def sections() -> dict[str, list[Block]]:
    parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)[1:]
    return {
        title: [
            Block(*found.groups())
            for found in re.finditer(r"^```(\w+) ?(\S*)\n(.*?)^```$", body, re.M | re.S)
        ]
        for title, body in zip(parts[0::2], parts[1::2], strict=True)
    }


class Change(NamedTuple):
    """One hunk: a file, lines as they are and as they are to be; no lines are for a new file."""

    file: str
    before: list[str]
    after: list[str]


def changes_of(title: str) -> list[Change]:
    found: list[Change] = []
    for block in sections()[title]:
        file = ""
        for line in block.text.splitlines() if block.language == "diff" else ():
            if line.startswith("+++ "):
                file = line.removeprefix("+++ b/")
            elif line.startswith("@@"):
                found.append(Change(file, [], []))
            elif not line.startswith("--- "):
                sign, rest = line[:1], line[1:]
                if sign in (" ", "-", ""):
                    found[-1].before.append(rest)
                if sign in (" ", "+", ""):
                    found[-1].after.append(rest)
    return found


def apply(change: Change, root: Path) -> None:
    path = root / change.file
    if not change.before:
        assert not path.exists(), f"{change.file} is there already"
        path.write_text("\n".join(change.after) + "\n", encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    before, after = ("\n".join(lines) + "\n" for lines in (change.before, change.after))
    assert text.count(before) == 1, f"{change.file} does not hold once:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_the_sections_stand_in_their_order() -> None:
    titles = list(sections())
    assert titles == [title for title in ORDER if title in titles]
    assert set(ADDED) <= set(titles)


@pytest.mark.parametrize("title", ADDED)
def test_a_thing_is_added_in_two_files_at_most(title: str) -> None:
    """Two modules at most; beside two new ones, one line of one table."""
    lines: dict[str, int] = {}
    for change in changes_of(title):
        added = len(change.after) - len([line for line in change.before if line in change.after])
        lines[change.file] = lines.get(change.file, 0) + added
    tables = [file for file, count in lines.items() if count == 1]
    assert len(tables) <= 1
    assert len(lines) - len(tables) <= 2
    assert len(lines) <= 2 or title == "Add a stage"


def test_what_is_to_be_run_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = "".join(block.text for title in ORDER[:2] for block in sections()[title])
    named = re.findall(r"make (\w+)", commands)
    assert named
    assert [target for target in named if f"\n{target}:" not in makefile] == []


# Runs commands in one process of the changed package: [[kind, text], …] to what each printed.
DRIVER = """
import contextlib, io, json, shlex, sys
printed = []
for kind, text in json.loads(sys.argv[1]):
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        if kind == "python":
            exec(compile(text, "CONTRIBUTING.md", "exec"), {})
        else:
            from alignkit.cli import main
            try:
                main(shlex.split(text)[1:])
            except SystemExit as stop:
                print(f"exit code {stop.code or 0}")
    printed.append(heard.getvalue())
import alignkit
print(json.dumps({"package": alignkit.__file__, "printed": printed}))
"""


def steps_of(title: str) -> list[tuple[str, str, list[str]]]:
    """Kind, text and what must be printed of each command and program of a section."""
    steps: list[tuple[str, str, list[str]]] = []
    for block in sections()[title]:
        if block.language == "python":
            steps.append(("python", block.text, []))
        for line in block.text.splitlines() if block.language == "console" else ():
            if line.startswith("$ "):
                steps.append(("command", line.removeprefix("$ "), []))
            else:
                steps[-1][2].append(line)
    return steps


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each section's steps printed, all changes applied to one copy of the package."""
    root = tmp_path_factory.mktemp("contributed")
    for part in ("alignkit", "recipes", "data_schemas"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    work = root / "work"
    work.mkdir()
    steps: list[Any] = []
    for title in ADDED:
        for change in changes_of(title):
            apply(change, root)
        for block in sections()[title]:
            if block.name:
                (work / block.name).write_text(block.text, encoding="utf-8")
        steps += steps_of(title)
    driver = [sys.executable, "-c", DRIVER, json.dumps([step[:2] for step in steps])]
    ended = subprocess.run(
        driver,
        cwd=work,
        env={**_environment(), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert Path(told["package"]).is_relative_to(root)
    printed = iter(told["printed"])
    return {title: [next(printed) for _ in steps_of(title)] for title in ADDED}


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("title", ADDED)
def test_what_a_section_shows_happens(title: str, done: dict[str, list[str]]) -> None:
    for (kind, text, expected), printed in zip(steps_of(title), done[title], strict=True):
        if kind == "command":
            assert printed.rstrip().endswith("exit code 0"), f"{text}\n{printed}"
        words = " ".join(printed.split())
        for line in expected:
            assert " ".join(line.split()) in words, f"{text}\n{printed}"
