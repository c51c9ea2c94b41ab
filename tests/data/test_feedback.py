"""Data sets of feedback under the names they are published with: what each of them says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.data.checks.file_check import check_file
from alignkit.data.columns import parse_columns
from alignkit.data.edit.convert import convert
from alignkit.data.read import (
    load_demonstrations,
    load_preferences,
    load_rankings,
    read_records,
)
from alignkit.data.records import Candidates, Preference, Ranking
from alignkit.errors import DataError
from alignkit.files.problems import Problem
from tests.command import alignkit


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def order(record: Ranking) -> dict[str, int]:
    """Text -> rank of the ranked candidates."""
    return {
        c.messages[0].content: record.ranks[c.cid]
        for c in record.candidates
        if c.cid in record.ranks
    }


def only(path: Path, **options: Any) -> Ranking:
    (record,) = read_records(path, **options)
    assert isinstance(record, Ranking)
    return record


# --- verdicts on answers in columns -------------------------------------------------------------

PAIR = {"prompt": "Two?", "response_a": "4", "response_b": "5"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR | {"winner": "a"}, {"4": 1, "5": 2}),
        (PAIR | {"winner": "model_b"}, {"4": 2, "5": 1}),
        (PAIR | {"preference": "Response B"}, {"4": 2, "5": 1}),
        (PAIR | {"preferred": "response_a"}, {"4": 1, "5": 2}),
        (PAIR | {"verdict": "A is better"}, {"4": 1, "5": 2}),
        (PAIR | {"judgment": "[[B]]"}, {"4": 2, "5": 1}),
        (PAIR | {"label": "A>>B"}, {"4": 1, "5": 2}),
        (PAIR | {"label": "A<B"}, {"4": 2, "5": 1}),
        (PAIR | {"label": "A=B"}, {"4": 1, "5": 1}),
        (PAIR | {"winner": "tie (bothbad)"}, {"4": 1, "5": 1}),
        (PAIR | {"winner": None}, {}),
        (PAIR | {"winner": "second"}, {"4": 2, "5": 1}),
        (PAIR | {"score_a": 3, "score_b": 7.5}, {"4": 2, "5": 1}),
        (PAIR | {"response_a_rating": "5", "response_b_rating": "5"}, {"4": 1, "5": 1}),
        (PAIR | {"rank_a": 2, "rank_b": 1}, {"4": 2, "5": 1}),
        (PAIR | {"winner_a": 0, "winner_b": 1}, {"4": 2, "5": 1}),
        ({"question": "Two?", "answer1": "4", "answer2": "5", "better_answer": 2},
         {"4": 2, "5": 1}),
        ({"instruction": "Two?", "output_0": "4", "output_1": "5", "preferred": 0},
         {"4": 1, "5": 2}),
        ({"prompt": "Two?", "completion1": "4", "completion2": "5", "completion3": "6", "best": 3},
         {"4": 2, "5": 2, "6": 1}),
        ({"prompt": "Two?", "A": "4", "B": "5", "preferred": "B"}, {"4": 2, "5": 1}),
        ({"prompt": "Two?", "response1": "4", "response2": "5", "label": "0"}, {"4": 1, "5": 1}),
        ({"orig_instruction": "Two?", "orig_response_A": "4", "orig_response_B": "5",
          "orig_preference": "B"}, {"4": 2, "5": 1}),
    ],
)  # fmt: skip
def test_a_verdict_names_the_better_answer(
    row: dict[str, Any], expected: dict[str, int], tmp_path: Path
) -> None:
    assert order(only(write(tmp_path / "d.jsonl", row))) == expected


@pytest.mark.parametrize("verdict", [0, 1, True, "c", "model_c", "yes"])
def test_a_verdict_that_names_no_side_is_a_question_not_a_guess(
    verdict: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "d.jsonl", PAIR | {"winner": verdict})
    with pytest.raises(DataError, match="names none of response_a, response_b") as error:
        list(read_records(path))
    assert f"{path}:1: " in str(error.value)
    assert "--map chosen=COLUMN,rejected=COLUMN" in str(error.value)


def test_models_of_the_sides_are_kept(tmp_path: Path) -> None:
    row = PAIR | {"winner": "a", "model_a": "m", "model_b": "n"}
    record = only(write(tmp_path / "d.jsonl", row))
    assert [candidate.model for candidate in record.candidates] == ["m", "n"]


# --- published data sets ------------------------------------------------------------------------


def test_safe_rlhf_ranks_by_the_better_response_and_tells_of_the_safer(tmp_path: Path) -> None:
    row = {"prompt": "How do I pick a lock?", "response_0": "Use a pick.",
           "response_1": "Call a locksmith.", "is_response_0_safe": False,
           "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 1}  # fmt: skip
    path = write(tmp_path / "d.jsonl", row)
    assert order(only(path)) == {"Use a pick.": 1, "Call a locksmith.": 2}
    (told,) = check_file(path)[0].problems
    assert 'column "safer_response_id" holds scores or votes' in told.message
    by_safety = parse_columns("better_response_id=safer_response_id")
    assert order(only(path, columns=by_safety)) == {"Use a pick.": 2, "Call a locksmith.": 1}


@pytest.mark.parametrize(
    ("strength", "ranks"),
    [(-3, (1, 2)), (-1, (1, 2)), (0, (1, 1)), (1, (2, 1)), (3, (2, 1)), ("-2", (1, 2)), (None, ())],
)
def test_a_strength_below_zero_prefers_the_first(
    strength: Any, ranks: tuple[int, ...], tmp_path: Path
) -> None:
    two = {"prompt": "P", "response_1": "a", "response_2": "b", "preference_strength": strength}
    three = {"context": [{"role": "user", "content": "P"}], "response1": "a", "response2": "b",
             "overall_preference": strength}  # fmt: skip
    for name, row in (("two", two), ("three", three)):
        assert tuple(only(write(tmp_path / name, row)).ranks.values()) == ranks


def test_marked_turns_of_helpsteer_are_turns(tmp_path: Path) -> None:
    prompt = "c#\n<extra_id_1>Assistant\nWhat of it?\n<extra_id_1>User\nExplain."
    row = {"prompt": prompt, "response_1": "a", "response_2": "b", "preference_strength": 1}
    record = only(write(tmp_path / "d.jsonl", row))
    assert [(m.role, m.content) for m in record.prompt] == [
        ("user", "c#"), ("assistant", "What of it?"), ("user", "Explain.")
    ]  # fmt: skip


def test_helpsteer_rows_of_one_prompt_are_compared_by_helpfulness(tmp_path: Path) -> None:
    rest = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    rows = [{"prompt": p, "response": r, "helpfulness": h} | rest
            for p, r, h in (("P", "a", 1), ("P", "b", 4), ("Q", "c", 2))]  # fmt: skip
    path = write(tmp_path / "d.jsonl", *rows)
    assert check_file(path)[0].format == "helpsteer"
    (ranking,) = load_rankings(path).records
    assert order(ranking) == {"a": 2, "b": 1}
    (pair,) = load_preferences(path).records
    assert (pair.chosen[0].content, pair.rejected[0].content, pair.margin) == ("b", "a", 3.0)


KAGGLE = [
    ["1", "m1", "m2", '["Hi", "And again?"]', '["Hello", "Yes"]', '["Go away", "No"]', 1, 0, 0],
    ["2", "m1", "m3", '["What is 2+2?"]', '["4"]', '["four"]', 0, 0, 1],
]


def test_kaggle_tables_of_turns(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "model_a", "model_b", "prompt", "response_a", "response_b",
                        "winner_model_a", "winner_model_b", "winner_tie"])  # fmt: skip
        table.writerows(KAGGLE)
    first, second = (r for r in read_records(path, rules=False) if isinstance(r, Ranking))
    report = check_file(path)[0]
    assert (report.format, report.counts.get("unread-column")) == ("lmsys-kaggle", None)
    assert [(m.role, m.content) for m in first.prompt] == [("user", "Hi")]
    assert [m.content for m in first.candidates[0].messages] == ["Hello", "And again?", "Yes"]
    assert [c.model for c in first.candidates] == ["m1", "m2"]
    assert first.ranks == {"response_a": 1, "response_b": 2}
    assert order(second) == {"4": 1, "four": 1}
    convert([path], tmp_path / "ours.jsonl")
    convert([tmp_path / "ours.jsonl"], tmp_path / "back.csv", to="lmsys-kaggle")
    with open(path) as before, open(tmp_path / "back.csv") as after:
        assert list(csv.reader(after)) == list(csv.reader(before))


def test_a_lost_answer_and_two_winners_are_told_by_line(tmp_path: Path) -> None:
    base = {"prompt": ["Hi"], "response_a": ["x"], "response_b": ["y"], "winner_model_a": 1,
            "winner_model_b": 0, "winner_tie": 0}  # fmt: skip
    lost = write(tmp_path / "a.jsonl", base, base | {"response_b": [None]})
    with pytest.raises(DataError, match=r':2: "response_b\[0\]" is null'):
        list(read_records(lost))
    two = write(tmp_path / "b.jsonl", base | {"winner_tie": 1})
    with pytest.raises(DataError, match="2 of winner_model_a, winner_model_b, winner_tie are set"):
        list(read_records(two))


def test_stack_exchange_prefers_j(tmp_path: Path) -> None:
    row = {"qid": 1, "question": "Why?", "date": "2012/01/01", "metadata": ["u"],
           "response_j": "Because.", "response_k": "Dunno."}  # fmt: skip
    (record,) = read_records(write(tmp_path / "d.jsonl", row))
    assert isinstance(record, Preference)
    assert (record.chosen[0].content, record.rejected[0].content) == ("Because.", "Dunno.")


@pytest.mark.parametrize(
    "sides", [("pos_resp", "neg_resp"), ("preferred", "dispreferred"), ("winner", "loser"),
              ("chosen_answer", "rejected_answer")],
)  # fmt: skip
@pytest.mark.parametrize("question", ["prompt", "query", "instruction", "question"])
def test_two_sides_under_other_names(sides: tuple[str, str], question: str, tmp_path: Path) -> None:
    row = {question: "Two?", sides[1]: "5", sides[0]: "4", "system": "S"}
    (record,) = read_records(write(tmp_path / "d.jsonl", row))
    assert isinstance(record, Preference)
    assert [m.content for m in record.prompt] == ["S", "Two?"]
    assert (record.chosen[0].content, record.rejected[0].content) == ("4", "5")


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"responses": ["a", "b", "c"], "scores": [0.1, 0.9, 0.5]}, {"a": 3, "b": 1, "c": 2}),
        ({"completions": ["a", "b"], "rewards": [2, 2]}, {"a": 1, "b": 1}),
        ({"answers": ["a", "b"], "ratings": ["1", None]}, {"a": 1}),
        ({"generations": ["a", "b"], "rank": [1, 0]}, {"a": 2, "b": 1}),
        ({"responses": '["a", "b"]', "scores": "[1, 2]"}, {"a": 2, "b": 1}),
        ({"responses": "['a', 'b']", "scores": " [1, None] "}, {"a": 1}),
        ({"completions": "['a', \"b's\"]", "ranks": "[2, 1]"}, {"a": 2, "b's": 1}),
        ({"candidates": [{"text": "a", "score": 1}, {"text": "b", "score": 3}]}, {"a": 2, "b": 1}),
        ({"outputs": [{"output": "a", "rank": 1}, {"output": "b", "rank": 2}]}, {"a": 1, "b": 2}),
    ],
)
@pytest.mark.parametrize("question", ["prompt", "instruction", "question"])
def test_lists_with_scores_or_ranks(
    row: dict[str, Any], expected: dict[str, int], question: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "d.jsonl", {question: "Q"} | row)
    assert order(only(path)) == expected
    assert check_file(path)[0].counts.get("unread-column") is None


def test_scores_that_do_not_match_the_answers_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "Q", "responses": ["a", "b"], "scores": [1]})
    with pytest.raises(DataError, match=r':1: 2 in "responses" but 1 in "scores"'):
        list(read_records(path))
    path = write(tmp_path / "e.jsonl", {"prompt": "Q", "responses": ["a"], "scores": ["good"]})
    with pytest.raises(DataError, match=r'"scores\[0\]" is text, expected a number'):
        list(read_records(path))


def test_completions_without_scores_are_candidates(tmp_path: Path) -> None:
    (record,) = read_records(write(tmp_path / "d", {"prompt": "Q", "completions": ["a", "b"]}))
    assert isinstance(record, Candidates)
    assert [c.messages[0].content for c in record.candidates] == ["a", "b"]
    columns = {"prompt": "Q", "response_1": "a", "response_2": "b"}
    (record,) = read_records(write(tmp_path / "e", columns))
    assert isinstance(record, Candidates)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "P", "chosen": "a", "rejected": "b", "responses": ["a", "b"], "scores": [2, 1]},
         "preference"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
          "prompt": "Q", "completions": ["A", "B"]}, "demonstration"),
        ({"prompt": "P", "completion": "a", "label": True, "score": 0.5}, "label"),
        ({"question": "Q", "answer": "Paris", "answers": ["Paris", "paris"]}, "demonstration"),
        ({"question": "Q", "option_a": "x", "option_b": "y", "answer": "a"}, "demonstration"),
    ],
)  # fmt: skip
def test_a_row_that_says_what_it_is_stays_that(
    row: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    (record,) = read_records(write(tmp_path / "d.jsonl", row))
    assert record.kind == kind


# --- one graded answer --------------------------------------------------------------------------

GRADED = [
    {"prompt": "2+2?", "response": "4", "score": 9, "model": "m"},
    {"prompt": "3+3?", "response": "6", "score": 8},
    {"prompt": "2+2?", "response": "5", "score": 2},
]


def test_graded_answers_of_one_prompt_are_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *GRADED)
    (ranking,) = load_rankings(path).records
    assert order(ranking) == {"4": 1, "5": 2}
    assert [c.score for c in ranking.candidates] == [9.0, 2.0]
    assert [m.messages[1].content for m in load_demonstrations(path).records] == ["4", "6", "5"]
    convert([path], tmp_path / "o.jsonl", to="messages")
    first = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert (first["messages"][1]["content"], first["score"]) == ("4", 9)


def test_graded_completions_keep_what_their_template_reads(tmp_path: Path) -> None:
    """Rows with other tools are other prompts: their completions are not compared."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    asked = {"prompt": "2+2?", "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    path = write(
        tmp_path / "d.jsonl",
        asked | {"response": "4", "score": 9},
        asked | {"response": "5", "score": 2},
        {"prompt": "2+2?", "response": "four", "score": 1},
    )
    (ranking,) = load_rankings(path).records
    assert (ranking.tools, ranking.chat_template_kwargs) == (tools, {"enable_thinking": False})
    assert order(ranking) == {"4": 1, "5": 2}
    demonstrations = load_demonstrations(path).records
    assert [each.tools for each in demonstrations] == [tools, tools, None]
    (preference,) = load_preferences(path).records
    assert preference.tools == tools


def test_graded_answers_that_compare_nothing_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *GRADED[:2])
    with pytest.raises(DataError, match="2 graded completions, but no prompt has two"):
        load_preferences(path)
    ungraded = write(tmp_path / "e.jsonl", {"prompt": "Q", "completions": ["a", "b"]})
    with pytest.raises(DataError, match="these are candidates, completions that nobody has ranked"):
        load_preferences(ungraded)


def test_pairs_of_graded_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.jsonl", *GRADED)
    assert alignkit(capsys, "data", "pairs", path, "-o", tmp_path / "p.jsonl").code == 0
    (line,) = (tmp_path / "p.jsonl").read_text().splitlines()
    pair = json.loads(line)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("4", "5")


# --- trees --------------------------------------------------------------------------------------


def oasst(name: str, parent: str | None, said: str, rank: int | None = None) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "text": said, "rank": rank,
            "role": "assistant" if name.startswith("a") else "prompter", "lang": "en",
            "message_tree_id": "p1", "deleted": name == "a9"}  # fmt: skip


OASST = [
    oasst("p1", None, "Two?"), oasst("a1", "p1", "4", 0), oasst("a2", "p1", "5", 1),
    oasst("a3", "p1", "6"), oasst("a9", "p1", "deleted", 2), oasst("p2", "a1", "And?"),
    oasst("a4", "p2", "x", 1), oasst("a5", "p2", "y", 0), oasst("a6", "nowhere", "z", 0),
]  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
def test_messages_of_a_tree_are_rankings_of_replies(reverse: bool, tmp_path: Path) -> None:
    rows = OASST[::-1] if reverse else OASST
    found = [r for r in read_records(write(tmp_path / "d.jsonl", *rows)) if isinstance(r, Ranking)]
    assert [[m.content for m in r.prompt] for r in found] == [["Two?"], ["Two?", "4", "And?"]]
    assert [order(r) for r in found] == [{"4": 1, "5": 2}, {"x": 2, "y": 1}]
    assert {c.messages[0].content for c in found[0].candidates} == {"4", "5", "6"}


def test_messages_become_trees_and_the_trees_say_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", *OASST)
    convert([source], tmp_path / "ours.jsonl")
    convert([tmp_path / "ours.jsonl"], tmp_path / "trees.jsonl", to="oasst")
    (line,) = (tmp_path / "trees.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"]["replies"][0]["text"] == "4"
    assert check_file(tmp_path / "trees.jsonl")[0].format == "oasst"
    before, after = (list(read_records(p)) for p in (source, tmp_path / "trees.jsonl"))
    assert [(r.prompt, r.ranks) for r in after if isinstance(r, Ranking)] == [
        (r.prompt, r.ranks) for r in before if isinstance(r, Ranking)
    ]


def test_a_tree_without_compared_replies_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *OASST, oasst("p7", None, "Alone?"), oasst("a7", "p7", "A"))
    report = check_file(path)[0]
    assert report.rows == 2
    assert [(p.line, p.kind, p.level) for p in report.problems if p.kind == "unranked"] == [
        (10, "unranked", "warning")
    ]


def test_a_changed_tree_keeps_its_rankings(tmp_path: Path) -> None:
    """Two rankings of one tree that were changed become one tree again."""
    from alignkit.data.edit.convert import read_to_convert, row_of
    from alignkit.data.formats import format_named

    records = list(read_to_convert(write(tmp_path / "d.jsonl", *OASST), print))
    for record in records:
        assert isinstance(record, Ranking)
        record.prompt[0].content = "Two and two?"
    row = row_of(list(records), format_named("oasst"))
    again = [r for r in read_records(write(tmp_path / "t.jsonl", row)) if isinstance(r, Ranking)]
    assert [[m.content for m in r.prompt] for r in again] == [
        ["Two and two?"], ["Two and two?", "4", "And?"]
    ]  # fmt: skip
    assert [order(r) for r in again] == [{"4": 1, "5": 2}, {"x": 2, "y": 1}]


def utterance(turn: int, asked: str, said: str, score: int, chosen: bool) -> dict[str, Any]:
    return {"utterance_id": f"ut{score}", "conversation_id": "c1", "user_id": "u1", "turn": turn,
            "user_prompt": asked, "model_response": said, "model_name": "m", "score": score,
            "if_chosen": chosen}  # fmt: skip


def test_prism_turns_are_rankings_by_score(tmp_path: Path) -> None:
    rows = [utterance(0, "Hi", "a", 90, True), utterance(0, "Hi", "b", 10, False),
            utterance(0, "Hi", "c", 90, False), utterance(1, "So?", "d", 5, False),
            utterance(1, "So?", "e", 6, True)]  # fmt: skip
    path = write(tmp_path / "utterances.jsonl", *rows)
    found = [r for r in read_records(path) if isinstance(r, Ranking)]
    assert [[m.content for m in r.prompt] for r in found] == [["Hi"], ["Hi", "a", "So?"]]
    assert [order(r) for r in found] == [{"a": 1, "b": 2, "c": 1}, {"d": 2, "e": 1}]
    assert {r.annotator for r in found} == {"u1"}


# --- annotation tools ---------------------------------------------------------------------------


def argilla(responses: Any, **fields: Any) -> dict[str, Any]:
    return {"fields": {"prompt": "2+2?", "response-1": "4", "response-2": "5"} | fields,
            "responses": responses}  # fmt: skip


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ({"q": [{"value": "response-2", "user_id": "1"}]}, [{"4": 2, "5": 1}]),
        ({"q": [{"value": "1", "user_id": "1"}, {"value": "tie", "user_id": "2"}]},
         [{"4": 1, "5": 2}, {"4": 1, "5": 1}]),
        ({"q": [{"value": "Response 2 is better", "user_id": "1"}]}, [{"4": 2, "5": 1}]),
        ({"q": [{"value": ["response-2", "response-1"], "user_id": "1"}]}, [{"4": 2, "5": 1}]),
        ({"q": [{"value": [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}],
                 "user_id": "1"}]}, [{"4": 1, "5": 1}]),
        ({"q": [{"value": "response-1", "user_id": "1", "status": "draft"},
                {"value": "response-2", "user_id": "1", "status": "submitted"}]},
         [{"4": 2, "5": 1}]),
        ({"rating-1": [{"value": 2, "user_id": "1"}, {"value": 4, "user_id": "2"}],
          "rating-2": [{"value": 5, "user_id": "1"}, {"value": 4, "user_id": "2"}]},
         [{"4": 2, "5": 1}, {"4": 1, "5": 1}]),
        ([{"user_id": "1", "status": "submitted", "values": {"q": {"value": "response-1"}}}],
         [{"4": 1, "5": 2}]),
        ({"q": [{"value": "response-1", "user_id": "1"}],
          "why": [{"value": "It is right.", "user_id": "1"}]}, [{"4": 1, "5": 2}]),
    ],
)  # fmt: skip
def test_answers_to_questions_of_argilla(
    responses: Any, expected: list[dict[str, int]], tmp_path: Path
) -> None:
    path = write(tmp_path / "d.jsonl", argilla(responses))
    assert [order(r) for r in read_records(path) if isinstance(r, Ranking)] == expected


def test_answers_that_rank_nothing_are_told_with_what_they_say(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", argilla({"q": [{"value": "good", "user_id": "1"}]}))
    with pytest.raises(DataError, match="'good', which names none of response-1, response-2"):
        list(read_records(path))
    path = write(tmp_path / "e.jsonl", argilla({"q": [{"value": 4, "user_id": "1"}]}))
    with pytest.raises(DataError, match="no submitted ranking in this record"):
        list(read_records(path))


def test_columns_inside_a_record_of_a_tool_are_read_or_told(tmp_path: Path) -> None:
    answer = {"q": [{"value": "response-1", "user_id": "1"}]}
    path = write(tmp_path / "d.jsonl", argilla(answer, context="In base ten.", hint="Think first."))
    assert [m.content for m in only(path).prompt] == ["2+2?\nIn base ten."]
    assert [p.field for p in check_file(path)[0].problems] == ["fields.hint"]


def studio(data: dict[str, Any], selected: str = "left", **more: Any) -> dict[str, Any]:
    result = {"type": "pairwise", "from_name": "c", "to_name": "p", "value": {"selected": selected}}
    return {"id": 1, "data": data, "annotations": [
        {"completed_by": 1, "was_cancelled": False, "result": [result | more]}]}  # fmt: skip


TREE = {"prompt": "Name a tree", "answer1": "An oak", "answer2": "A stone"}


@pytest.mark.parametrize(
    "data",
    [
        TREE | {"model1": "m-a", "model2": "m-b"},
        {"model_1": "A model of note", "model_2": "Another model"} | TREE,
        TREE | {"source": "web", "author": "somebody else"},
        {"prompt": "Name a tree", "text_a": "An oak", "text_b": "A stone", "name_a": "x",
         "name_b": "y"},
        {"zz": "notes", "right": "A stone", "left": "An oak", "prompt": "Name a tree"},
    ],
)  # fmt: skip
def test_the_sides_of_label_studio_are_named_not_counted(
    data: dict[str, Any], tmp_path: Path
) -> None:
    record = only(write(tmp_path / "d.jsonl", studio(data)))
    assert order(record) == {"An oak": 1, "A stone": 2}
    assert [m.content for m in record.prompt] == ["Name a tree"]


def test_the_labelling_config_names_the_sides(tmp_path: Path) -> None:
    data = {"prompt": "Name a tree", "x": "An oak", "y": "A stone", "z": "m-a"}
    config = ('<View><Pairwise name="pw" toName="t1,t2"/><Text name="t1" value="$x"/>'
              '<Text name="t2" value="$y"/></View>')  # fmt: skip
    for more in ({"to_name": "x,y"}, {"to_name": "t1,t2"}):
        row = studio(data, "right", **more) | {"label_config": config}
        record = only(write(tmp_path / "d.jsonl", row))
        assert order(record) == {"An oak": 2, "A stone": 1}


def test_unclear_sides_are_an_error_and_a_map_names_them(tmp_path: Path) -> None:
    data = {"prompt": "Name a tree", "x": "An oak", "y": "A stone", "z": "m-a"}
    path = write(tmp_path / "d.jsonl", studio(data))
    with pytest.raises(DataError, match="which texts were compared is unclear") as error:
        list(read_records(path))
    assert "--map data.left=data.COLUMN,data.right=data.COLUMN" in str(error.value)
    named = parse_columns("data.left=data.x,data.right=data.y")
    assert order(only(path, columns=named)) == {"An oak": 1, "A stone": 2}


def test_an_unknown_selection_is_no_tie(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", studio(TREE, "middle"))
    with pytest.raises(DataError, match="'middle', expected one of left, right"):
        list(read_records(path))


@pytest.mark.parametrize(
    "decision", ["right", {"selected": "right"}, [{"selected": "right"}],
                 [{"selected": "right", "type": "Pairwise"}]],
)  # fmt: skip
def test_label_studio_in_columns(decision: Any, tmp_path: Path) -> None:
    row = {"id": 4, **TREE, "model1": "m-a", "model2": "m-b", "pick": decision, "annotator": 2,
           "annotation_id": 7, "lead_time": 3.5, "created_at": "2024-01-01T10:00:00Z"}  # fmt: skip
    path = write(tmp_path / "d.jsonl", row)
    record = only(path)
    assert (order(record), record.annotator) == ({"An oak": 2, "A stone": 1}, "2")
    assert check_file(path)[0].counts == {}


def test_choices_that_name_a_text_are_verdicts(tmp_path: Path) -> None:
    def chosen(*names: str) -> dict[str, Any]:
        results = [{"type": "choices", "value": {"choices": [name]}} for name in names]
        return {"data": TREE, "annotations": [{"completed_by": 1, "result": results}]}

    assert order(only(write(tmp_path / "a", chosen("answer2")))) == {"An oak": 2, "A stone": 1}
    assert order(only(write(tmp_path / "b", chosen("fluent", "1")))) == {"An oak": 1, "A stone": 2}
    with pytest.raises(DataError, match="no pairwise or ranker annotation"):
        list(read_records(write(tmp_path / "c", chosen("fluent"))))


# --- scores that say the contrary ---------------------------------------------------------------


def scored(chosen: float, rejected: float, name: str = "score_chosen") -> dict[str, Any]:
    asked = [{"role": "user", "content": "q"}]
    return {"prompt": "q", "chosen": [*asked, {"role": "assistant", "content": "a"}],
            "rejected": [*asked, {"role": "assistant", "content": "b"}],
            name: chosen, name.replace("chosen", "rejected"): rejected}  # fmt: skip


@pytest.mark.parametrize("name", ["score_chosen", "chosen_score", "chosen-rating", "reward_chosen"])
def test_scores_against_the_sides_are_told_by_line(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", scored(5, 3, name), scored(3, 5, name), scored(4, 4, name))
    found = {
        p.kind: p for p in check_file(path)[0].problems if p.line and "duplicate" not in p.kind
    }
    assert {kind: (p.line, p.level) for kind, p in found.items()} == {
        "negative-margin": (2, "error"), "equal-scores": (3, "warning")
    }  # fmt: skip
    assert found["negative-margin"].message == (
        "the rejected completion has score 5, the chosen one 3"
    )
    with pytest.raises(DataError, match=":2: the rejected completion has score 5"):
        load_preferences(path)
    assert len(load_preferences(path, on_bad_row="drop").records) == 2


def test_a_negative_margin_is_told(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -2}
    (problem,) = check_file(write(tmp_path / "d.jsonl", row))[0].problems
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.line, problem.level) == ("negative-margin", 1, "error")


def test_clean_drops_or_swaps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.jsonl", scored(5, 3), scored(3, 5))
    out = tmp_path / "out.jsonl"
    done = alignkit(capsys, "data", "clean", "--no-default", "--drop", "negative-margin", path,
                    "-o", out)  # fmt: skip
    assert (done.code, len(out.read_text().splitlines())) == (0, 1)
    swapped = ("--no-default", "--repair", "swap-negative", "--to", "alignkit")
    done = alignkit(capsys, "data", "clean", *swapped, path, "-o", out)
    assert done.code == 0
    assert "swap-negative 1" in done.err
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["chosen"][0]["content"], first["margin"]) == ("a", 2.0)
    assert (second["chosen"][0]["content"], second["margin"]) == ("b", 2.0)
    assert (second["extra"]["score_chosen"], second["extra"]["score_rejected"]) == (5, 3)
    assert check_file(out)[0].counts.get("negative-margin") is None
    undone = tmp_path / "undone.jsonl"
    log = f"{out}.changes.jsonl"
    assert alignkit(capsys, "data", "clean", "--undo", log, out, "-o", undone).code == 0
    assert json.loads(undone.read_text().splitlines()[1])["chosen"][0]["content"] == "a"


def test_swapped_rows_keep_their_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "d.jsonl", scored(3, 5)), tmp_path / "out.jsonl"
    swap = ("data", "clean", "--no-default", "--repair", "swap-negative")
    assert alignkit(capsys, *swap, path, "-o", out).code == 0
    row = json.loads(out.read_text())
    assert row["chosen"][1]["content"] == "b"
    assert (row["score_chosen"], row["score_rejected"]) == (5, 3)
