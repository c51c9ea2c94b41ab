"""The corner shop: asks, answers, their gold score, and the data sets made of them."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data import records as kinds
from alignkit.errors import DataError, RecipeError
from alignkit.tiny import corpus, data, gold, task

ASK = "Hi, this is Emma. I opened the box and the yellow helmet was in pieces."
GOOD = "Hi Emma. I am sorry to hear that. We will send you a new helmet. Have a nice day."
KIND_OF = {
    "demonstrations": kinds.Demonstration,
    "prompts": kinds.Prompt,
    "candidates": kinds.Candidates,
    "validation": kinds.Prompt,
    "test": kinds.Prompt,
}


@pytest.mark.parametrize(
    ("reply", "worth"),
    [
        (GOOD, 5.5),
        ("Hi Emma. We will send you a new helmet.", 4.0),
        ("Hi Emma. We can replace the broken helmet.", 4.0),
        ("Hi Iris. We will send you a new helmet.", 2.0),  # another name
        ("We will send you a new helmet.", 2.0),  # no name
        ("Hi Emma. We will send you a new watch.", 2.0),  # another item
        ("Hi Emma. We will refund the helmet.", 1.0),  # a remedy of another problem
        ("Hi Emma. We will send you a new helmet. We can refund the helmet.", 1.0),  # hedging
        ("Hi Emma. We will send you a new helmet or watch.", 2.0),  # hedging
        ("Hi Emma. That is your own fault. We will send you a new helmet.", 2.0),
        ("Hi Emma. Well, we will send you a new helmet.", 3.5),
        ("Hi Emma. Well, you know, we will send you a new helmet.", 3.0),
        ("Hi Emma. Hi Emma. We will send you a new helmet.", 3.3),
        ("Hi Emma. We will send you a new new helmet.", 0.6),  # doubled, and no remedy any more
        ("Hi Emma. We will send you a new helmet", 3.0),
        ("Hi Emma. We will send you a new helmet." + " " + "Do it now " * 8 + "ok.", 3.6),
        ("", -4.0),
    ],
)
def test_gold_score_of_replies_worked_by_hand(reply: str, worth: float) -> None:
    assert gold.score(ASK, reply) == pytest.approx(worth)


def test_gold_parts_sum_to_the_score_and_are_all_named() -> None:
    judged = gold.judge(ASK, GOOD)
    assert sum(judged.parts.values()) == judged.total == gold.MAXIMUM
    assert judged.parts == {
        "remedy": 2.0,
        "item": 1.0,
        "name": 1.0,
        "empathy": 1.0,
        "closing": 0.5,
        "rude": 0.0,
        "filler": 0.0,
        "repeats": 0.0,
        "length": 0.0,
        "unfinished": 0.0,
    }


def test_every_ask_is_understood_and_every_perfect_reply_earns_the_maximum() -> None:
    rng = random.Random(0)
    for problem in task.PROBLEMS:
        for ask in range(3):
            for frame in range(len(task.FRAMES)):
                for remedy in problem.remedies:
                    asked = task.compose(
                        rng.choice(task.NAMES),
                        rng.choice(task.ITEMS),
                        "red",
                        problem.name,
                        ask,
                        frame,
                    )
                    assert gold.facts_of(asked.text) == gold.Facts(
                        asked.name, asked.item, asked.problem
                    )
                    reply = (
                        f"Hi {asked.name}. That should not happen. "
                        f"We will {remedy.format(item=asked.item)}. Have a nice day."
                    )
                    assert gold.score(asked.text, reply) == gold.MAXIMUM


def test_a_prompt_of_another_world_is_refused() -> None:
    with pytest.raises(DataError, match="not an ask of the corner shop"):
        gold.score("What is the capital of France?", "Paris.")


@given(st.text(max_size=200))
def test_no_reply_is_worth_more_than_the_maximum(reply: str) -> None:
    assert gold.score(ASK, reply) <= gold.MAXIMUM


def test_more_skill_is_worth_more() -> None:
    rng = random.Random(1)
    means = [
        statistics.mean(
            gold.score(ask.text, task.write_completion(ask, skill, rng))
            for ask in (task.draw_ask(rng) for _ in range(400))
        )
        for skill in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert means == sorted(means)
    assert means[0] < 0
    assert means[-1] > 4.5


@pytest.mark.parametrize("name", sorted(KIND_OF))
def test_same_seed_same_bytes_other_seed_other_rows(name: str, tmp_path: Path) -> None:
    first = data.write(name, 3, tmp_path / "a" / "first.jsonl")
    again = data.write(name, 3, tmp_path / "again.jsonl")
    other = data.write(name, 4, tmp_path / "other.jsonl")
    assert first.read_bytes() == again.read_bytes()
    shared = set(first.read_bytes().splitlines()) & set(other.read_bytes().splitlines())
    assert shared == set()


@pytest.mark.parametrize(("name", "kind"), sorted(KIND_OF.items()))
def test_rows_are_valid_records(name: str, kind: type[kinds.Record], tmp_path: Path) -> None:
    path = data.write(name, 0, tmp_path / "rows.jsonl", rows=50)
    rows = [kind.model_validate(orjson.loads(line)) for line in path.read_bytes().splitlines()]
    assert len(rows) == 50
    assert len({row.id for row in rows}) == 50


def prompts_of(name: str, seed: int) -> set[str]:
    return {
        (row.get("prompt") or row["messages"])[0]["content"] for row in data.records(name, seed)
    }


def test_no_two_uses_share_a_prompt_whatever_the_seeds() -> None:
    uses = ("demonstrations", "prompts", "validation", "test")
    by_use = {name: set.union(*(prompts_of(name, seed) for seed in range(3))) for name in uses}
    for name, prompts in by_use.items():
        assert len(prompts_of(name, 0)) == data.DATA_SETS[name].rows
        for another in uses:
            assert name == another or not prompts & by_use[another]


def test_candidates_hold_different_answers_to_the_prompts_of_the_same_seed() -> None:
    asked = {row["id"]: row["prompt"] for row in data.records("prompts", 5)}
    rows = list(data.records("candidates", 5))
    assert {row["id"]: row["prompt"] for row in rows} == asked
    for row in rows:
        replies = {candidate["messages"][0]["content"] for candidate in row["candidates"]}
        assert len(replies) == len(row["candidates"]) == 3


def test_demonstrations_are_of_mixed_skill() -> None:
    worths = [
        gold.score(row["messages"][0]["content"], row["messages"][1]["content"])
        for row in data.records("demonstrations", 0)
    ]
    assert 2.7 < statistics.mean(worths) < 3.2
    assert min(worths) < 0
    assert max(worths) == gold.MAXIMUM


def test_an_unknown_data_set_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'prompts'"):
        data.write("promts", 0, tmp_path / "x.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_pretraining_text_holds_no_prompt_of_later_stages_and_no_good_chat() -> None:
    stream = corpus.documents(0)
    documents = [next(stream) for _ in range(6000)]
    assert documents[:3] == [text for text, _ in zip(corpus.documents(0), range(3), strict=False)]
    text = "\n".join(documents)
    assert not any(prompt in text for prompt in prompts_of("test", 0) | prompts_of("prompts", 0))
    answers = [
        turn
        for document in documents
        for turn in document.split(corpus.END)
        if turn.startswith(corpus.ASSISTANT)
    ]
    assert len(answers) > 500
    assert not any(pattern.search(turn) for turn in answers for _, pattern in gold.REMEDY_PATTERNS)
