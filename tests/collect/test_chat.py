"""Feedback while talking: verdicts, choices and corrections become data for the next round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.collect.chat import Chat
from alignkit.collect.feedback import HUMAN, Feedback
from alignkit.collect.log import EventLog, live, read_events
from alignkit.collect.terminal import Screen
from alignkit.data.read import load_preferences, load_rankings
from alignkit.data.records import Message
from alignkit.evaluation.agreement import agreement_report
from tests.collect_data import lines


def echo(name: str) -> Callable[[list[Message], int, Callable[[str], None]], str]:
    """A speaker that says its name, the seed and what it was told."""

    def speak(messages: list[Message], seed: int, tell: Callable[[str], None]) -> str:
        reply = f"{name} {seed}: " + " | ".join(f"{m.role} {m.content}" for m in messages)
        tell(reply + "\x1b[2J")
        return reply

    return speak


def talk(
    path: Path | None, *typed: str, models: tuple[str, ...] = ("sft",), seed: int = 1
) -> tuple[Chat, str]:
    """A whole conversation; what was on screen."""
    said: list[str] = []
    words = iter(typed)

    def read(prompt: str) -> str:
        said.append(prompt)
        try:
            return next(words)
        except StopIteration:
            raise EOFError from None

    screen = Screen(read, said.append, colour=False)
    named = {name: echo(name) for name in models}
    if path is None:
        chat = Chat(named, screen, seed, said.append)
        chat.run()
    else:
        with EventLog(path) as log:
            chat = Chat(named, screen, seed, said.append, Feedback(log, "ann"))
            chat.run()
    return chat, "\n".join(said)


def test_a_conversation_grows_and_is_instructed() -> None:
    chat, _ = talk(None, "one", "two", "/system be brief", "three")
    assert [m.content for m in chat.turns] == ["three", "sft 3: system be brief | user three"]
    chat, _ = talk(None, "one", "two")
    assert chat.turns[-1].content == ("sft 2: user one | assistant sft 1: user one | user two")


def test_regen_and_undo_go_back() -> None:
    chat, _ = talk(None, "one", "/regen")
    assert [m.content for m in chat.turns] == ["one", "sft 2: user one"]
    chat, _ = talk(None, "one", "two", "/undo")
    assert [m.content for m in chat.turns] == ["one", "sft 1: user one"]
    assert talk(None, "one", "/new")[0].turns == []


def test_one_thumb_compares_nothing_and_two_make_a_ranking(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    talk(path, "hi", "/good")
    assert [e.ranks for e in live(read_events(path))] == [{"c0": 1}]
    talk(path, "hi", "/bad", "/regen", "/good", "/regen", "/bad")
    events = live(read_events(path))
    assert len(lines(path)) == 4 and len(events) == 2  # each thumb takes the last one's place
    assert events[-1].ranks == {"c0": 2, "c1": 1, "c2": 2}
    ranking = load_rankings(path).records[0]
    assert [c.messages[0].content[:5] for c in ranking.candidates] == ["sft 1", "sft 2", "sft 3"]
    assert [m.content for m in ranking.prompt] == ["hi"]


def test_feedback_with_lone_thumbs_goes_through_agreement_and_into_pairs(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    talk(path, "hi", "/good", "/new", "and you?", "/bad", "/new", "why?", "/fix because")
    report = agreement_report([path], bootstrap=20)
    assert (report["n_items"], report["n_votes"]) == (3, 3)
    assert report["annotators"][0]["first_shown"]["n"] == 1
    assert [pair.chosen[0].content for pair in load_preferences(path).records] == ["because"]


def test_thumbs_down_on_everything_prefer_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    talk(path, "hi", "/bad", "/regen", "/bad")
    event = live(read_events(path))[-1]
    assert event.ranks == {"c0": 1, "c1": 1} and event.all_bad


def test_a_correction_beats_the_reply_and_the_conversation_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    chat, _ = talk(path, "hi", "/fix better words", "and?")
    assert chat.turns[-1].content.endswith("user hi | assistant better words | user and?")
    pair = load_preferences(path).records[0]
    assert pair.chosen[0].content == "better words"
    assert pair.rejected[0].content == "sft 1: user hi"
    assert read_events(path)[0].extra["candidates"][1]["model"] == HUMAN


def test_two_models_are_chosen_between_without_their_names(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    said = ""
    firsts = set()
    for seed in range(12):
        chat, shown = talk(path, "hi", "maybe", "1", models=("old", "new"), seed=seed)
        said += shown
        firsts.add(chat.last.model if chat.last else "")
    assert firsts == {"old", "new"}  # the order is drawn anew
    assert "type 1, 2 or 0" in said and "[completion]" in said
    events = read_events(path)
    assert len(events) == 12 and {e.action for e in events} == {"pair"}
    for event in events:
        assert event.ranks == {"c0": 1, "c1": 2} and event.shown == ["c0", "c1"]
        assert {c["model"] for c in event.extra["candidates"]} == {"old", "new"}
    assert len(load_preferences(path).records) == 12
    talk(path, "hi", "0", models=("old", "new"), seed=99)
    assert read_events(path)[-1].ranks == {"c0": 1, "c1": 1}


def test_what_a_model_says_cannot_act_on_the_terminal() -> None:
    _, said = talk(None, "hi")
    assert "\x1b" not in said and "⟨U+001B⟩[2J" in said


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["/godo"], "did you mean 'good'"),
        (["/good"], "Start with --collect FILE"),
        (["/regen"], "no completion yet"),
        (["hi", "/fix"], "corrected text is missing"),
    ],
)
def test_mistakes_are_explained_and_the_conversation_goes_on(typed: list[str], reason: str) -> None:
    chat, said = talk(None, *typed, "still here")
    assert reason in said and chat.turns[-2].content == "still here"
