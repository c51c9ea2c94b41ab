"""Ranking in a real pseudo-terminal, and the parts of the terminal that need none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.collect.log import live, read_events
from alignkit.collect.markdown_ansi import rendered
from alignkit.collect.terminal import Screen, Terminal, cells_of, parse_line, wrap
from alignkit.errors import DataError
from alignkit.store.visible import visible
from tests.collect_data import collecting, item, items, lines, write

RANK = [sys.executable, "-m", "alignkit", "rank"]
PROMPT = r"order \(.*\) > "
PATIENCE = 300  # seconds that a loaded machine may take to answer; nothing here is a timed test


@contextmanager
def terminal(candidates: Path, output: Path, *options: str) -> Iterator[Any]:
    """`alignkit rank --terminal` in a pseudo-terminal of 80 columns."""
    arguments = [*RANK[1:], str(candidates), "--output", str(output), "--annotator", "ann",
                 "--terminal", *options]  # fmt: skip
    child = pexpect.spawn(
        RANK[0],
        arguments,
        dimensions=(40, 80),
        encoding="utf-8",
        timeout=PATIENCE,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    try:
        yield child
    finally:
        child.close(force=True)


def say(child: Any, line: str) -> str:
    """Type a line at the prompt and return what was on screen before it."""
    child.expect(PROMPT)
    shown: str = child.before
    child.sendline(line)
    return shown


def test_a_whole_session_in_a_pseudo_terminal(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    candidates = write(tmp_path / "c.jsonl", items(8, 3))
    with terminal(candidates, output) as child:
        first = say(child, "2>1=3 !3 # the second is right")
        assert "question 0?" in first and "completion 3" in first
        assert "characters" not in first
        assert "saved (characters 1: 10, 2: 10, 3: 10)" in say(child, "?")
        assert "tie all" in say(child, "t")
        say(child, "b")
        say(child, "b 3>* # all poor")
        say(child, "s not my field")
        assert "a flag" not in say(child, "f")
        child.expect("what is wrong with it")
        child.sendline("names a person")
        say(child, "123")
        assert "undone" not in say(child, "u")
        assert "undone: 1>2>3" in say(child, "v")
        say(child, "3>2")
        say(child, "nonsense")
        assert "neither an order nor a command" in say(child, "2>2")
        assert "2 occurs twice" in say(child, "!9")
        assert "the difference must be 1" in say(child, "q")
        child.expect("Your saved votes: 5")
        child.expect(pexpect.EOF)
        child.wait()
    assert child.exitstatus == 0
    acts = live(read_events(output))
    assert [e.action for e in acts] == ["rank", "rank", "rank", "rank", "skip", "flag", "rank"]
    by_place = [[(e.ranks or {}).get(cid) for cid in e.shown] for e in acts]
    assert by_place[0] == [2, 1, 2] and by_place[1] == [1, 1, 1]
    assert by_place[3] == [2, 2, 1] and by_place[6] == [None, 2, 1]
    assert (acts[0].strength, acts[0].comment) == (3, "the second is right")
    assert [e.all_bad for e in acts[:4]] == [False, False, True, True]
    assert (acts[4].reason, acts[5].reason) == ("not my field", "names a person")
    assert {e.ui for e in acts} == {"tui"}
    with terminal(candidates, output) as child:  # and it goes on where it was
        assert "8 of 8" in say(child, "1>2>3")
        child.expect("All done")
        child.expect(pexpect.EOF)


def test_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    with terminal(write(tmp_path / "c.jsonl", items(3)), output) as child:
        say(child, "1")
        child.expect(PROMPT)
        # An interrupt in the moment between readline's prompt and its wait for input takes effect
        # with the next key only; who sees nothing happen presses again.
        for _ in range(5):
            child.sendintr()
            if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=PATIENCE / 10) == 0:
                break
        child.wait()
    assert child.exitstatus == 130
    assert len(lines(output)) == 1


def test_threat_6_a_model_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    attack = "safe\x1b[2J\x1b]0;title\x07\x9b31m \u202eevil\u2066 \rover\x08\x7f\u200b"
    record = item(0, [attack, "plain"], prompt=f"ask {attack}")
    with terminal(write(tmp_path / "c.jsonl", [record]), tmp_path / "r.jsonl") as child:
        shown = say(child, "q")
    # Colours and weights are ours; no other sequence and no other control may be there.
    rest = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?2004[hl]", "", shown).replace("\r\n", "\n")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", rest)
    for mark in ("⟨U+001B⟩[2J", "⟨U+0007⟩", "⟨U+009B⟩", "⟨U+202E⟩", "⟨U+000D⟩", "⟨U+200B⟩"):
        assert mark in rest
    colours = set(re.findall(r"\x1b\[([0-9;]*)m", shown))
    assert colours <= {"0", "1", "2", "3", "4", "31", "36"}


def test_a_pipe_gets_no_colour_and_the_end_of_input_ends_the_session(tmp_path: Path) -> None:
    candidates = write(tmp_path / "c.jsonl", items(3))
    output = tmp_path / "r.jsonl"
    options = ["--output", output, "--annotator", "ann", "--terminal"]
    done = subprocess.run(
        [*RANK, candidates, *options], input="2\n1=2 # s\u2028t\n", capture_output=True, text=True
    )
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert [e.comment for e in read_events(output)] == ["", "s\u2028t"]
    assert "2 of 3 items have a vote" in done.stderr


@pytest.mark.parametrize(
    ("line", "order", "strength", "comment"),
    [
        ("2>1=3", "2>1=3", None, ""),
        ("2>1 !4", "2>1", 4, ""),
        ("2>1 # why ! not # so", "2>1", None, "why ! not # so"),
        (" 1 !2 # x ", "1", 2, "x"),
        ("# only a comment", "", None, "only a comment"),
    ],
)
def test_a_line_holds_order_strength_and_comment(
    line: str, order: str, strength: int | None, comment: str
) -> None:
    answer = parse_line(line)
    assert (answer.order, answer.strength, answer.comment) == (order, strength, comment)


@given(st.text(max_size=60))
def test_any_line_is_understood_or_explained(line: str) -> None:
    try:
        answer = parse_line(line)
    except DataError:
        return
    assert answer.strength in (None, 1, 2, 3, 4)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=80), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_conversation_with_the_terminal_ends_well(
    tmp_path_factory: pytest.TempPathFactory, typed: list[str]
) -> None:
    output = tmp_path_factory.mktemp("t") / "r.jsonl"
    said: list[str] = []
    words = iter(typed)

    def read(_prompt: str) -> str:
        try:
            return next(words)
        except StopIteration:
            raise EOFError from None

    with collecting(output, items(4)) as collection:
        Terminal(collection.session("ann"), Screen(read, said.append, colour=False)).run()
    assert said[-1].startswith("Your saved votes:")
    read_events(output)


def test_text_is_wrapped_by_what_it_takes_on_screen_and_code_is_left_alone() -> None:
    assert list(wrap("one two three", 8)) == ["one two", "three"]
    assert cells_of("日本語e\u0301") == 7
    assert list(wrap("日本語 日本語", 7)) == ["日本語", "日本語"]
    code = "```\n" + "x " * 60 + "\n```"
    assert "\n".join(wrap(code, 20)) == code
    assert "\n".join(wrap("    " + "y " * 60, 20)) == "    " + "y " * 60


@given(st.text(max_size=200), st.integers(10, 80))
def test_wrapping_loses_no_word(text: str, columns: int) -> None:
    shown = visible(text)
    assert "".join("".join(wrap(shown, columns)).split()) == "".join(shown.split())


@given(st.text(alphabet="a*`_#- >~\n[]()1.", max_size=120))
def test_rendering_for_the_terminal_adds_attributes_only(text: str) -> None:
    plain = re.sub(r"\x1b\[[0-9]+m", "", rendered(text))
    assert re.sub(r"[*`#\s•-]", "", plain) == re.sub(r"[*`#\s•-]", "", text)


def test_markdown_is_shown_with_attributes() -> None:
    shown = rendered("# Head\n**b** and `c`\n- x\n```\n**raw**\n```")
    assert "\x1b[1m\x1b[4mHead\x1b[0m" in shown and "\x1b[1mb\x1b[0m" in shown
    assert "\x1b[36mc\x1b[0m" in shown and "• x" in shown and "**raw**" in shown


def test_after_an_unsaved_answer_the_same_line_can_be_typed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit.collect.log import EventLog
    from alignkit.errors import DiskFull

    said: list[str] = []
    typed = iter(["1", "1"])
    real = EventLog._write
    refusals = iter([DiskFull("no space left")])

    def write_(self: EventLog, line: bytes) -> None:
        if error := next(refusals, None):
            raise error
        real(self, line)

    monkeypatch.setattr(EventLog, "_write", write_)
    with collecting(tmp_path / "r.jsonl", items(1)) as collection:
        screen = Screen(lambda _: next(typed), said.append, colour=False)
        Terminal(collection.session("ann"), screen).run()
    assert any("Not saved. no space left" in line for line in said)
    assert len(lines(tmp_path / "r.jsonl")) == 1
