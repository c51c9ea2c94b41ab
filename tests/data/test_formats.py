"""Every format: recognised by its keys, read into a record, written back to the same row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data.checks.dataset_checks import FilePrints
from alignkit.data.columns import Columns, parse_columns
from alignkit.data.edit.convert import canonical, convert, read_to_convert, remember, row_of
from alignkit.data.formats import FORMATS, detect, format_named
from alignkit.data.read import exact_value, read_records, records_of
from alignkit.data.records import Preference, Ranking
from alignkit.data.rules import findings
from alignkit.errors import AlignkitError, DataError
from alignkit.files.problems import Problem, RowError
from alignkit.files.rows import Row, read_rows


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": "{}"}}
ASKED = [turn("user", "Two and two?")]
YES, NO = [turn("assistant", "Four.")], [turn("assistant", "Five.")]
HH = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant: "

# format -> rows as they are found in the wild, odd but legal shapes among them
ROWS: dict[str, list[dict[str, Any]]] = {
    "alignkit": [{"v": 1, "kind": "prompt", "id": "p", "extra": {"k": 1},
                  "source": {"format": "x", "file": "f", "row": 3},
                  "prompt": ASKED}],
    "hh-rlhf": [{"chosen": HH + "Well.", "rejected": HH + "Bad."},
                {"chosen": HH.rstrip(), "rejected": HH + " Two  blanks "},
                {"chosen": HH + "A\n\nHuman: B\n\nAssistant: C", "rejected": HH + "D"}],
    "sharegpt": [{"id": "x", "conversations": [said("human", "Hi"), said("gpt", "Hello")]},
                 {"conversations": [said("user", "Hi"), said("function_call", "{}"),
                                    said("observation", "4"), said("gpt", "Four")],
                  "system": "Be brief.", "tools": "[]"}],
    "sharegpt-preference": [{"conversations": [said("system", "S"), said("human", "Hi")],
                             "chosen": said("gpt", "Hello"), "rejected": said("gpt", "Go")}],
    "sharegpt-kto": [{"conversations": [said("human", "Hi"), said("gpt", "Hello")],
                      "kto_tag": True}],
    "llamafactory-v1": [{"messages": [
        turn("user", [{"type": "text", "value": "Hi"}], loss_weight=0.0),
        turn("assistant", [{"type": "text", "value": "Hello"}], loss_weight=1.0)]}],
    "llamafactory-v1-preference": [{
        "chosen_messages": [turn("user", [{"type": "text", "value": "Hi"}]),
                            turn("assistant", [{"type": "text", "value": "Hello"}])],
        "rejected_messages": [turn("user", [{"type": "text", "value": "Hi"}]),
                              turn("assistant", [{"type": "text", "value": "Go"}])]}],
    "openai-preference": [{"input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
                           "preferred_output": YES, "non_preferred_output": NO}],
    "openai-chat": [{"messages": [turn("user", "Hi"), turn("assistant", "Hello", weight=0),
                                  turn("user", "And?"), turn("assistant", "Well", weight=1)]}],
    "messages": [{"messages": ASKED + YES},
                 {"messages": [turn("developer", "D"), *ASKED,
                               turn("assistant", None, tool_calls=[CALL]),
                               turn("tool", "4", tool_call_id="c1"), *YES],
                  "tools": [{"type": "function"}], "chat_template_kwargs": {"x": 1}},
                 {"messages": [turn("user", [{"type": "text", "text": "Hi"}]), *YES]}],
    "messages-kto": [{"messages": ASKED + YES, "label": False}],
    "kto": [{"prompt": "Two?", "completion": "Four", "label": True},
            {"prompt": ASKED, "completion": YES, "label": False}, ],
    "preference": [{"prompt": "Two?", "chosen": "Four", "rejected": "Five", "margin": 0.5},
                   {"prompt": ASKED, "chosen": YES, "rejected": NO, "images": []},
                   {"chosen": ASKED + YES, "rejected": ASKED + NO},
                   {"chosen": "The sky is blue", "rejected": "The sky is green"}],
    "ultrafeedback-binarized": [{
        "prompt": "Two and two?", "prompt_id": "9f", "chosen": ASKED + YES,
        "rejected": ASKED + NO, "messages": ASKED + YES, "score_chosen": 8.5,
        "score_rejected": 3.0}],
    "prompt-completion": [{"prompt": "Two?", "completion": "Four"},
                          {"prompt": [*ASKED, *YES, turn("user", "And?")], "completion": NO}],
    "prompt-response": [{"prompt": "Two?", "response": "Four", "source_id": 18446744073709551616}],
    "question-answer": [{"question": "Two?", "answer": "Four"}],
    "instruction-response": [{"instruction": "Two?", "response": "Four"}],
    "labelled-text": [{"text": "Good film.", "label": 1}, {"text": "Bad film.", "label": "0"}],
    "text": [{"text": "Once upon a time."}],
    "mt-bench": [{"question_id": 81, "category": "writing", "turns": ["One.", "Two."],
                  "reference": ["a", "b"]},
                 {"question_id": "3f", "category": "arena-hard-v0.1", "cluster": "c",
                  "turns": [{"content": "One."}]}],
    "prompt": [{"prompt": "Two?"}, {"prompt": ASKED}],
    "alpaca": [{"instruction": "Add", "input": "2 2", "output": "4"},
               {"instruction": "Add", "output": "4"},
               {"instruction": "And?", "input": "", "output": "5", "system": "S",
                "history": [["Hi", "Hello"], ["So", "Yes"]]}],
    "alpaca-preference": [{"instruction": "Add", "input": "2 2", "chosen": "4", "rejected": "5"}],
    "alpaca-outputs": [{"instruction": "Add", "input": "", "output": ["4", "5"]}],
    "alpacaeval-outputs": [{"dataset": "helpful", "instruction": "Add", "output": "4",
                            "generator": "gpt"}],
    "xlam": [{"id": 3, "query": "Weather in Oslo?",
              "answers": '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
              "tools": json.dumps([{"name": "get_weather", "description": "d",
                                    "parameters": {"city": {"type": "str"}}}])}],
    "swift": [{"query": "And?", "response": "Five", "system": "S",
               "history": [["Hi", "Hello"], ["So", "Yes"]]},
              {"query": "And?", "response": "Five"}],
    "swift-preference": [{"query": "Two?", "response": "4", "rejected_response": "5"}],
    "swift-messages": [{"messages": ASKED + YES, "rejected_response": "Five."}],
    "self-instruct": [{"id": "seed_0", "name": "n", "instruction": "Add",
                       "instances": [{"input": "2 2", "output": "4"}], "is_classification": False}],
    "self-instruct-predictions": [{"prompt": "Add\nOutput:", "instruction": "Add", "input": "",
                                   "response": " 4", "target": "four"}],
    "ranked": [{"prompt": "Two?", "completions": ["a", "b", "c"], "ranks": [2, 1, None],
                "annotator": "ann"}],
    "ranked-responses": [{"prompt": "Two?", "responses": ["a", "b"], "ranks": [1, 1]}],
    "ultrafeedback": [{"source": "s", "instruction": "Add", "models": ["m1", "m2"],
                       "completions": [
                           {"model": "m1", "response": "4", "annotations": {
                               "helpfulness": {"Rating": "5"}, "honesty": {"Rating": "N/A"}}},
                           {"model": "m2", "response": "5", "overall_score": 3.0}],
                       "correct_answers": ["None"]}],
    "nectar": [{"prompt": "\n\nHuman: Hi \n\nAssistant: ", "turns": 1, "num_responses": 2,
                "answers": [{"answer": "a", "model": "m", "rank": 1.0},
                            {"answer": "b", "model": "n", "rank": 2.0}]}],
    "shp": [{"post_id": "p", "history": "Why?", "human_ref_A": "a", "human_ref_B": "b",
             "labels": 0, "score_A": 3, "score_B": 9}],
    "webgpt": [{"question": {"dataset": "eli5", "id": "q", "full_text": "Why?"},
                "quotes_0": {"title": ["t"], "extract": ["e"]}, "answer_0": "a", "answer_1": "b",
                "score_0": 0.5, "score_1": -0.5},
               {"question": {"full_text": "Why?"}, "answer_0": "a", "answer_1": "b",
                "score_0": 0, "score_1": 0}],
    "summarize": [{"info": {"id": "i", "post": "Long.", "title": "t"},
                   "summaries": [{"text": "a", "policy": "p", "note": ""}, {"text": "b"}],
                   "choice": 1, "worker": "w", "extra": {"confidence": 7}}],
    "pandalm": [{"idx": 0, "motivation_app": "x", "instruction": "Add", "input": "2",
                 "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 1,
                 "annotator3": 0}],
    "auto-j": [{"scenario": "s", "label": 2, "prompt": "Two?", "response 1": "a",
                "response 2": "b"}],
    "llmbar": [{"input": "Two?", "output_1": "a", "output_2": "b", "label": 2}],
    "rm-bench": [{"id": 1, "prompt": "Two?", "subset": "math", "chosen": ["a", "b", "c"],
                  "rejected": ["d", "e", "f"]}],
    "arena": [{"question_id": "q", "model_a": "m", "model_b": "n", "winner": "tie (bothbad)",
               "judge": "j", "conversation_a": ASKED + YES, "conversation_b": ASKED + NO,
               "turn": 1, "tstamp": 1.5}],
    "alpacaeval": [{"instruction": "Add", "output_1": "a", "generator_1": "m", "output_2": "b",
                    "generator_2": "n", "annotator": "x", "preference": 1.7, "dataset": "d"}],
    "argilla": [{"id": "r1", "fields": {"prompt": "2+2?", "response1": "4", "response2": "5"},
                 "metadata": {}, "suggestions": {}, "responses": {"preference": [
                     {"value": "response1", "user_id": "11"},
                     {"value": "response2", "user_id": "22"}]}, "vectors": {}},
                {"id": "r1", "fields": {"prompt": "2+2?", "response-1": "4", "response-2": "5"},
                 "responses": {"ranking": [{"value": ["response-2", "response-1"],
                                            "user_id": "11"}]}, "status": "completed"},
                {"id": "r1", "fields": {"prompt": "Two?", "response-1": "a", "response-2": "b"},
                 "metadata": {}, "status": "completed", "responses": {"ranking": [
                     {"value": [{"value": "response-2", "rank": 1},
                                {"value": "response-1", "rank": 2}],
                      "user_id": "u1", "status": "submitted"},
                     {"value": [{"value": "response-2", "rank": 1},
                                {"value": "response-1", "rank": 1}],
                      "user_id": "u2", "status": "submitted"}]}}],
    "label-studio": [{"id": 7, "data": {"prompt": "Two?", "left": "a", "right": "b"},
                      "annotations": [{"id": 1, "completed_by": 3, "was_cancelled": False,
                                       "lead_time": 4.2, "result": [
                                           {"type": "pairwise", "value": {"selected": "right"}}]},
                                      {"id": 2, "completed_by": 4, "result": [
                                           {"type": "pairwise", "value": {"selected": "left"}}]}]},
                     {"data": {"prompt": "Two?", "items": [{"id": "x", "body": "a"},
                                                           {"id": "y", "body": "b"}]},
                      "annotations": [{"completed_by": 3, "result": [
                          {"type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}]}]},
                     {"data": {"prompt": "Two?", "left": "a", "right": "b"}, "annotations": [
                         {"completed_by": 3, "result": [
                             {"type": "pairwise", "value": {"selected": "neither"}}]}]}],
    "prodigy": [{"text": "Two?", "options": [{"id": "A", "text": "a"}, {"id": "B", "text": "b"}],
                 "accept": ["B"], "answer": "accept", "_session_id": "s", "_timestamp": 1,
                 "mapping": {"A": "sft", "B": "dpo"}}],
    "argilla-hub": [
        {"prompt": "Two?", "response-1": "a", "response-2": "b",
         "preference.responses": ["response-1", "response-2"],
         "preference.responses.users": ["11", "22"],
         "preference.responses.status": ["submitted", "submitted"],
         "_server_id": "x", "id": "1", "status": "completed"},
        {"prompt": "Two?", "r1": "a", "r2": "b", "ranking.responses": [["r2", "r1"]],
         "ranking.responses.users": ["11"], "ranking.responses.status": ["submitted"]},
        {"prompt": "Two?", "r1": "a", "r2": "b", "metadata": {}, "external_id": None,
         "best": [{"user_id": "u", "value": {"rank": [2, 1], "value": ["r1", "r2"]},
                   "status": "submitted"}],
         "best-suggestion": None, "best-suggestion-metadata": {}}],
    "label-studio-min": [
        {"id": 1, "prompt": "Two?", "answer1": "a", "answer2": "b", "model1": "m-a",
         "model2": "m-b", "comparison": [{"selected": "right"}], "annotator": 3,
         "annotation_id": 9, "created_at": "2024-01-01T10:00:00Z", "lead_time": 4.2},
        {"prompt": "Two?", "left": "a", "right": "b", "pw": "left", "annotator": "me@example.org"}],
    "oasst": [{"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": {
        "message_id": "t", "text": "Two?", "role": "prompter", "lang": "en", "replies": [
            {"message_id": "a", "parent_id": "t", "text": "4", "role": "assistant", "rank": 0,
             "replies": [{"message_id": "c", "text": "And?", "role": "prompter", "replies": [
                 {"message_id": "d", "text": "x", "role": "assistant", "rank": 1, "replies": []},
                 {"message_id": "e", "text": "y", "role": "assistant", "rank": 0,
                  "replies": []}]}]},
            {"message_id": "b", "parent_id": "t", "text": "5", "role": "assistant", "rank": 1,
             "replies": []}]}}],
    "oasst-messages": [{"message_id": "m", "parent_id": None, "text": "Two?", "role": "prompter",
                        "message_tree_id": "m"}],
    "prism": [{"conversation_id": "c", "user_id": "u", "conversation_type": "unguided",
               "opening_prompt": "Two?", "conversation_history": [
                   {"turn": 0, "role": "user", "content": "Two?"},
                   {"turn": 0, "role": "model", "content": "4", "model_name": "m", "score": 80,
                    "if_chosen": True, "within_turn_id": 0},
                   {"turn": 0, "role": "model", "content": "5", "model_name": "n", "score": 10,
                    "if_chosen": False, "within_turn_id": 1},
                   {"turn": 1, "role": "user", "content": "And?"},
                   {"turn": 1, "role": "model", "content": "x", "model_name": "m", "score": 5,
                    "if_chosen": False, "within_turn_id": 0},
                   {"turn": 1, "role": "model", "content": "y", "model_name": "m", "score": 6,
                    "if_chosen": True, "within_turn_id": 1}]}],
    "prism-utterances": [{"conversation_id": "c", "turn": 0, "user_prompt": "Two?",
                          "model_response": "4", "score": 3, "if_chosen": True}],
    "safe-rlhf": [{"prompt": "Two?", "response_0": "5", "response_1": "4",
                   "is_response_0_safe": True, "is_response_1_safe": True,
                   "better_response_id": 1, "safer_response_id": 0}],
    "helpsteer2-preference": [{"split": "train", "prompt": "Two?", "response_1": "4",
                               "response_2": "5", "preference_strength": -3,
                               "preference_statement": "1 is right",
                               "three_most_similar_preferences": []},
                              {"prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nSo?",
                               "response_1": "a", "response_2": "b", "preference_strength": 0}],
    "helpsteer3": [{"domain": "general", "language": "english", "context": ASKED,
                    "response1": "5", "response2": "4", "overall_preference": 2,
                    "individual_preference": [{"score": 2, "reasoning": "It is right."}]}],
    "helpsteer": [{"prompt": "Two?", "response": "4", "helpfulness": 4, "correctness": 4,
                   "coherence": 4, "complexity": 0, "verbosity": 0}],
    "lmsys-kaggle": [{"id": 1, "model_a": "m", "model_b": "n", "prompt": '["Hi", "And again?"]',
                      "response_a": '["Hello", "Yes"]', "response_b": '["Go away", "No"]',
                      "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
                     {"model_a": "m", "model_b": "n", "prompt": ["Two?"], "response_a": ["4"],
                      "response_b": ["4"], "winner_model_a": "0", "winner_model_b": "0",
                      "winner_tie": "1"}],
    "stack-exchange": [{"qid": 1, "question": "Two?", "date": "2012/01/01", "metadata": ["u"],
                        "response_j": "4", "response_k": "5"}],
    "swift-chats": [{"messages": ASKED + YES, "rejected_messages": ASKED + NO}],
    "scored-answers": [{"prompt": "Two?", "responses": ["a", "b", "c"], "scores": [0.1, 0.9, 0.5]},
                       {"instruction": "Two?", "generations": ["a", "b"], "ratings": [4, None],
                        "generation_models": ["m", "n"]},
                       {"question": "Two?", "completions": ["a", "b"], "ranks": [2, 1]},
                       {"prompt": ASKED, "candidates": [{"text": "a", "score": 1, "model": "m"},
                                                        {"text": "b", "score": 2}]}],
    "answers": [{"prompt": "Two?", "completions": ["a", "b"]},
                {"question": "Two?", "outputs": [{"text": "a", "model": "m"}, {"text": "b"}]}],
    "compared-columns": [
        {"prompt": "Two?", "response_a": "4", "response_b": "5", "winner": "model_a",
         "model_a": "m", "model_b": "n"},
        {"instruction": "Two?", "output_1": "4", "output_2": "5", "preferred": 2},
        {"question": "Two?", "answer1": "4", "answer2": "5", "answer3": "6", "best": "answer3"},
        {"prompt": "Two?", "response_A": "4", "response_B": "5", "label": "B>A"},
        {"prompt": "Two?", "response_1": "4", "response_2": "5", "score_1": 7, "score_2": 3}],
    "answer-columns": [{"prompt": "Two?", "response_1": "4", "response_2": "5"}],
    "two-sides": [{"prompt": "Two?", "pos_resp": "4", "neg_resp": "5"},
                  {"query": "Two?", "chosen": "4", "rejected": "5"}],
    "labelled-answer": [{"prompt": "Two?", "response": "4", "label": True},
                        {"question": "Two?", "answer": "5", "label": 0, "context": "c"}],
    "graded": [{"prompt": "Two?", "response": "4", "score": 9},
               {"instruction": "Two?", "input": "x", "output": "4", "rating": "3.5"}],
    "question-response": [{"id": "f.1", "system_prompt": "S", "question": "Q", "response": "A"}],
    "input-output": [{"input": "Two?", "output": "4"}],
    "prompt-output": [{"prompt": "Two?", "output": "4"}],
    "prompt-answer": [{"prompt": "Two?", "answer": "4"}],
    "problem-solution": [{"problem": "Two?", "solution": "4"}],
    "instruction-completion": [{"instruction": "Two?", "completion": "4"}],
    "instruction-answer": [{"instruction": "Two?", "answer": "4", "context": "c"}],
    "question-output": [{"question": "Two?", "output": "4"}],
    "query-answer": [{"query": "Two?", "answer": "4"}],
    "instruction": [{"instruction": "Two?", "input": "x"}],
    "question": [{"question": "Two?"}],
    "query": [{"query": "Two?", "system": "S"}],
    "axolotl": [{"system": "S", "prompt": "Two?", "chosen_response": "4",
                 "rejected_response": "5"}],
    "axolotl-instruction": [{"instruction": "Two?", "chosen_response": "4",
                             "rejected_response": "5"}],
    "axolotl-question": [{"question": "Two?", "chosen": "4", "rejected": "5"}],
    "axolotl-input": [{"input": "Two?", "chosen": "4", "rejected": "5"}],
}  # fmt: skip

GATHERED = ("oasst-messages", "prism-utterances")  # rows that say something together only

CASES = [(name, position) for name, rows in ROWS.items() for position in range(len(rows))]
KEPT = [(name, position) for name, position in CASES if name not in GATHERED]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_in(path: Path) -> list[dict[str, Any]]:
    problems: list[Problem] = []
    rows = [exact_value(row) for row in read_rows(path, problems.append)]
    assert [problem for problem in problems if problem.level == "error"] == []
    return rows


def test_every_format_has_a_sample() -> None:
    assert ROWS.keys() == FORMATS.keys()


@pytest.mark.parametrize(("name", "position"), CASES)
def test_a_row_is_recognised(name: str, position: int) -> None:
    assert detect([ROWS[name][position]]).name == name


@pytest.mark.parametrize(("name", "position"), KEPT)
def test_there_and_back_is_the_same_row(name: str, position: int, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [ROWS[name][position]])
    convert([source], tmp_path / "ours.jsonl")
    convert([tmp_path / "ours.jsonl"], tmp_path / "back.jsonl", to=name)
    assert rows_in(tmp_path / "back.jsonl") == rows_in(source)
    kept = (tmp_path / "back.jsonl").read_text()
    if name == "prompt-response":
        assert "18446744073709551616" in kept  # not 1.8446744073709552e19


@pytest.mark.parametrize(
    "name", [n for n in ROWS if n not in ("labelled-text", "alignkit", *GATHERED)]
)
@pytest.mark.parametrize("suffix", [".json", ".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_there_and_back_in_every_container(name: str, suffix: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS[name][:1])
    convert([source], tmp_path / "ours.jsonl")
    convert([tmp_path / "ours.jsonl"], tmp_path / f"back{suffix}", to=name)
    back = rows_in(tmp_path / f"back{suffix}")
    assert [canonical(row) for row in back] == [canonical(row) for row in ROWS[name][:1]]


TEXTS_ONLY = ("hh-rlhf", "prompt-completion", "alpaca", "alpaca-preference", "messages", "sharegpt")


@pytest.mark.parametrize("name", TEXTS_ONLY)
def test_tables_hold_texts_and_messages(name: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS[name][:1])
    convert([source], tmp_path / "back.csv", to=name)
    assert rows_in(tmp_path / "back.csv") == ROWS[name][:1]


def record_of(name: str, position: int = 0, *, folder: Path) -> Any:
    path = write_lines(folder / "one.jsonl", [ROWS[name][position]])
    return next(iter(read_to_convert(path, print)))


def test_transcripts_are_split_at_the_last_answer_and_never_inside_a_turn(tmp_path: Path) -> None:
    record = record_of("hh-rlhf", folder=tmp_path)
    assert [m.role for m in record.prompt] == ["user", "assistant", "user"]
    assert (record.chosen[0].content, record.rejected[0].content) == ("Well.", "Bad.")


def test_sides_with_different_prompts_keep_both(tmp_path: Path) -> None:
    record = record_of("hh-rlhf", 2, folder=tmp_path)
    assert [m.content for m in record.prompt] == ["Hi there", "Hello.", "And?"]
    assert [m.content for m in record.prompt_chosen][-2:] == ["A", "B"]
    assert record.chosen[0].content == "C"


def test_words_shared_by_both_answers_stay_in_the_answers(tmp_path: Path) -> None:
    rows = [{"chosen": [*ASKED, turn("assistant", "The cat sat")],
             "rejected": [*ASKED, turn("assistant", "The cat ran")]}]  # fmt: skip
    (record,) = read_to_convert(write_lines(tmp_path / "d.jsonl", rows), print)
    assert isinstance(record, Preference)
    assert record.prompt[0].content == "Two and two?"
    assert record.chosen[0].content == "The cat sat"


def test_roles_of_sharegpt_are_ours(tmp_path: Path) -> None:
    record = record_of("sharegpt", 1, folder=tmp_path)
    assert [m.role for m in record.messages] == ["system", "user", "assistant", "tool", "assistant"]


def test_weight_says_what_is_trained(tmp_path: Path) -> None:
    record = record_of("openai-chat", folder=tmp_path)
    assert [m.train for m in record.messages] == [None, False, None, True]


def test_earlier_answers_of_a_prompt_are_context(tmp_path: Path) -> None:
    record = record_of("prompt-completion", 1, folder=tmp_path)
    assert [(m.role, m.train) for m in record.messages] == [
        ("user", None), ("assistant", False), ("user", None), ("assistant", None)
    ]  # fmt: skip


def test_ranks_follow_ratings_and_na_is_no_rating(tmp_path: Path) -> None:
    record = record_of("ultrafeedback", folder=tmp_path)
    assert record.ranks == {"c0": 1, "c1": 2}
    assert [candidate.score for candidate in record.candidates] == [5.0, 3.0]


def test_an_unranked_completion_is_not_the_worst(tmp_path: Path) -> None:
    assert record_of("ranked", folder=tmp_path).ranks == {"c0": 2, "c1": 1}


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("shp", {"c0": 2, "c1": 1}),
        ("llmbar", {"c0": 2, "c1": 1}),
        ("auto-j", {"c0": 1, "c1": 1}),
        ("arena", {"a": 1, "b": 1}),
        ("alpacaeval", {"c0": 2, "c1": 1}),
        ("pandalm", {"c0": 1, "c1": 2}),
        ("summarize", {"c0": 2, "c1": 1}),
        ("webgpt", {"c0": 1, "c1": 2}),
        ("prodigy", {"A": 2, "B": 1}),
        (
            "rm-bench",
            {**{f"chosen{i}": 1 for i in range(3)}, **{f"rejected{i}": 2 for i in range(3)}},
        ),
    ],
)
def test_verdicts_become_ranks(name: str, ranks: dict[str, int], tmp_path: Path) -> None:
    assert record_of(name, folder=tmp_path).ranks == ranks


def test_each_annotator_gives_a_ranking(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", ROWS["argilla"])
    records = [r for r in read_records(path) if isinstance(r, Ranking)]
    assert [(r.annotator, r.ranks) for r in records] == [
        ("11", {"response1": 1, "response2": 2}), ("22", {"response1": 2, "response2": 1}),
        ("11", {"response-2": 1, "response-1": 2}),
        ("u1", {"response-2": 1, "response-1": 2}), ("u2", {"response-2": 1, "response-1": 1}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "A", "response1": True, "response2": "b", "annotator1": 0},
         '"response1" is a boolean'),
        ({"prompt": "P", "completions": ["a", "b"], "ranks": [1]}, "2 completions but 1 ranks"),
        ({"messages": [{"role": "bot", "content": "x"}]}, 'unknown role "bot"'),
        ({"messages": [{"role": "user"}]}, 'no "content". Found: role'),
        ({"conversations": [said("humn", "x")]}, 'did you mean "human"'),
        ({"input": "I", "output_1": "a", "output_2": "b", "label": 3}, "expected one of 1, 2"),
        ({"kind": "rankin"}, "unknown kind"),
        ({"v": 1, "kind": "prompt", "prompt": [turn("user", "x")], "promt": 1}, 'key "promt"'),
        ({"kind": "ranking", "prompt": [], "candidates": [], "ranks": {}}, "candidates"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_its_field(
    row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "d.jsonl", [row])
    with pytest.raises(DataError) as error:
        list(read_records(path))
    assert f"{path}:1: " in str(error.value)
    assert words in str(error.value)
    assert "Fix: " in str(error.value)


# --- loss ---------------------------------------------------------------------------------------


def test_what_a_target_cannot_hold_is_listed_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    record = Preference(
        id="mine", prompt=[], chosen=[], rejected=[], weight=0.5, group="g", margin=1.0
    ).model_dump()
    record |= {"prompt": ASKED, "chosen": YES, "rejected": NO}
    path.write_text(json.dumps(record))
    with pytest.raises(DataError) as error:
        convert([path], tmp_path / "out.jsonl", to="hh-rlhf")
    assert "hh-rlhf cannot hold: " in str(error.value)
    assert {"margin", "weight", "group"} <= set(str(error.value).replace(";", " ").split())
    assert not (tmp_path / "out.jsonl").exists()
    done = convert([path], tmp_path / "out.jsonl", to="hh-rlhf", lossy=True)
    assert done.lost == {"margin": 1, "weight": 1, "group": 1}
    convert([path], tmp_path / "trl.jsonl", to="preference")
    assert rows_in(tmp_path / "trl.jsonl")[0]["weight"] == 0.5


def test_a_changed_record_is_not_overwritten_by_what_was_read(tmp_path: Path) -> None:
    record = record_of("alpaca", folder=tmp_path)
    record.messages[-1].content = "four"
    row = row_of([record], format_named("alpaca"))
    assert row == {"instruction": "Add", "input": "2 2", "output": "four"}
    record.messages[0].content = "Sum\n2 2"
    row = row_of([record], format_named("alpaca"))
    assert row == {"instruction": "Sum\n2 2", "input": "", "output": "four"}


def test_a_row_its_writer_cannot_say_is_kept_whole_until_it_changes(tmp_path: Path) -> None:
    record = record_of("label-studio", 2, folder=tmp_path)
    assert row_of([record], format_named("label-studio")) == ROWS["label-studio"][2]
    record.candidates[0].messages[0].content = "changed"
    with pytest.raises(RowError, match="cannot hold ties"):
        row_of([record], format_named("label-studio"))


def test_rankings_are_not_silently_cut_into_pairs(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", ROWS["ranked"])
    with pytest.raises(AlignkitError, match="alignkit data pairs"):
        convert([path], tmp_path / "out.jsonl", to="preference")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(row=st.fixed_dictionaries(
    {"instruction": TEXT, "output": TEXT},
    optional={"input": TEXT | st.none(), "system": TEXT, "history": st.lists(
        st.lists(TEXT, min_size=2, max_size=2), max_size=2), "extra": st.integers(), "id": TEXT},
))  # fmt: skip
def test_any_alpaca_row_comes_back(
    row: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("alpaca")
    convert([write_lines(folder / "in.jsonl", [row])], folder / "ours.jsonl")
    convert([folder / "ours.jsonl"], folder / "back.jsonl", to="alpaca")
    assert canonical(rows_in(folder / "back.jsonl")) == canonical([row])


# --- column maps --------------------------------------------------------------------------------


def test_a_column_map_reads_names_nobody_foresaw(tmp_path: Path) -> None:
    rows = [{"data": {"q": "Two?"}, "answer_a": "4", "answer_b": "5", "note": "n"}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    columns = parse_columns("prompt=data.q,chosen=answer_a,rejected=answer_b")
    (record,) = read_records(path, columns=columns)
    assert isinstance(record, Preference)
    assert (record.prompt[0].content, record.chosen[0].content) == ("Two?", "4")
    assert record.extra["note"] == "n"


def test_dataset_info_names_columns_and_tags(tmp_path: Path) -> None:
    info = {
        "kto": {"file_name": "kto.json", "formatting": "sharegpt",
                "columns": {"messages": "msgs", "kto_tag": "good"},
                "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me",
                         "assistant_tag": "it"}},
        "plain": {"file_name": "plain.json", "columns": {"prompt": "q", "response": "a"}},
    }  # fmt: skip
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    talk = [{"who": "me", "what": "Hi"}, {"who": "it", "what": "Hello"}]
    (tmp_path / "kto.json").write_text(json.dumps([{"msgs": talk, "good": True}]))
    (tmp_path / "plain.json").write_text(json.dumps([{"q": "Hi", "a": "Hello"}]))
    (label,) = read_records(f"{tmp_path}/dataset_info.json#kto")
    assert label.kind == "label"
    (demonstration,) = read_records(f"{tmp_path}/dataset_info.json#plain")
    assert demonstration.kind == "demonstration"
    with pytest.raises(DataError, match="did you mean 'plain'"):
        list(read_records(f"{tmp_path}/dataset_info.json#plian"))


def test_a_map_must_be_new_equals_old() -> None:
    assert parse_columns("a=b, c=d.e") == Columns({"a": "b", "c": "d.e"})
    with pytest.raises(AlignkitError, match="NEW=OLD"):
        parse_columns("prompt")


# --- whatever stands under the keys --------------------------------------------------------------

SAID = st.sampled_from(["user", "assistant", "system", "gpt", "human", "", "x", "1", "tie", "N/A",
                        "\n\nHuman: a\n\nAssistant: b", "model_a", "accept", "text"])  # fmt: skip
INNER_KEYS = st.sampled_from(
    ["role", "content", "from", "value", "rank", "answer", "model", "response", "id", "text",
     "type", "cid", "messages", "output", "full_text", "post", "Rating", "result", "ranker",
     "selected", "values", "user_id", "annotations", "weight", "tool_calls", "extra", "body"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False) | SAID,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER_KEYS, inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_values_are_read_or_refused_by_field(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    required = {key: ANYTHING | SAID for key in form.keys}
    optional = {key: ANYTHING for key in form.also | {"id", "margin"} if key not in form.keys}
    value = data.draw(st.fixed_dictionaries(required, optional=optional))
    row = Row(1, 0, value)
    try:
        records = records_of(row, form, "f")
    except RowError:
        return
    if not records:
        return  # told as a row in which nothing is compared
    across = FilePrints()
    for record in records:
        list(findings(record))
        across.add(record, 1)
    list(across.problems("f"))
    written = row_of(remember(records, row, form), form)
    if name != "alignkit":
        assert canonical(written) == canonical(value)
