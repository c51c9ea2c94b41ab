"""Completions with feedback under columns of many names: scores, ranks, verdicts, grades.

One reader per shape, whatever its columns are called: completions in a list, in numbered columns,
one graded completion, two sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from alignkit.data.formats.fields import (
    BOOLEANS,
    PAIR_RANKS,
    Fields,
    Format,
    Row,
    Turn,
    as_number,
    assistant,
    boolean,
    either,
    expected,
    keys,
    missing,
    not_text,
    only_candidate,
    ranking,
    ranks_by_score,
    shared,
    text_or_rows,
    user,
)
from alignkit.data.formats.literals import json_list
from alignkit.data.formats.sides import (
    Series,
    completion_series,
    named_side,
    numbers_in,
    ranks_of_winner,
)
from alignkit.data.records import Candidates, Label, Preference, Ranking
from alignkit.files.problems import RowError

# --- the columns of a row -----------------------------------------------------------------------

# Names of the prompt's column; the first that holds text or messages is the prompt.
QUESTIONS = ("orig_instruction", "prompt", "instruction", "question", "query", "user_prompt",
             "problem", "user_input", "post", "input", "conversation", "trajectory",
             "context")  # fmt: skip
LISTS = ("completions", "responses", "answers", "candidates", "outputs", "generations", "samples",
         "replies", "model_responses", "model_outputs")  # fmt: skip
ANSWERS = ("orig_response", "completion", "response", "answer", "output", "reply", "generation")
SCORES = ("scores", "rewards", "ratings", "grades", "rating", "score", "reward")
RANKS = ("ranks", "rank")
GRADES = ("orig_score", "score", "rating", "grade", "reward", "overall_score", "overall_rating",
          "stars")  # fmt: skip
TEXTS = ("text", "content", "response", "completion", "output", "answer", "generation", "value",
         "message", "generated_text")  # fmt: skip
MODELS = ("model", "model_name", "generator", "name", "source")


def prompt_column(row: Row) -> str | None:
    """Return the column that holds the prompt, None if there is none."""
    return _first(row, QUESTIONS, lambda value: _can_ask(value) or _turn_texts(value) is not None)


def _can_ask(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)
    )


def _asked(row: Row) -> list[Turn]:
    name = prompt_column(row)
    if name is None:
        raise _no_column(row, QUESTIONS, "text or messages")
    asked = _turn_texts(row[name])
    return _turns(row[name], name, "user") if asked is None else [user(asked[0])]


def _turns(value: Any, key: str, role: str) -> list[Turn]:
    """Read text as one turn of `role`, messages, or ShareGPT's turns {from, value}."""
    if isinstance(value, list) and all(isinstance(turn, dict) and "from" in turn for turn in value):
        return [shared(turn, f"{key}[{position}]") for position, turn in enumerate(value)]
    return either(value, key, role)


def _no_column(row: Row, names: Sequence[str], what: str) -> RowError:
    """Explain why none of these columns serves: all are missing, or the first holds other data."""
    name = next((name for name in names if name in row), None)
    return missing(row, keys(names[0])) if name is None else expected(row[name], what, name)


def _turn_texts(value: Any) -> list[Any] | None:
    """Return the texts of several turns, if a column lists them; else None."""
    texts = json_list(value)
    return texts if texts and all(item is None or type(item) is str for item in texts) else None


def _first(row: Row, names: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
    return next((name for name in names if name in row and fits(row[name])), None)


def _is_list(value: Any) -> bool:
    return bool(json_list(value))


# --- completions in a list ----------------------------------------------------------------------


def _list_columns(row: Row) -> tuple[str | None, str | None, str | None]:
    """Return the columns of (completions, scores, ranks), None where there is none."""
    answers = _first(row, LISTS, _is_list)
    return answers, _first(row, SCORES, _is_list), _first(row, RANKS, _is_list)


def _is_open(row: Row) -> bool:
    """Return whether no column settles what the row is: sides, a chat, a labeled completion."""
    return not (
        {"chosen", "rejected"} <= row.keys()
        or {"completion", "label"} <= row.keys()
        or isinstance(row.get("messages"), list)
        or isinstance(row.get("conversations"), list)
    )


def _has_answers(row: Row) -> bool:
    name = _list_columns(row)[0]
    alone = _first(row, ANSWERS, _can_ask)
    return name is not None and alone is None and prompt_column(row) is not None and _is_open(row)


def _has_scored_answers(row: Row) -> bool:
    answers, scores, ranks = _list_columns(row)
    if answers is None or prompt_column(row) is None or not _is_open(row):
        return False
    items = json_list(row[answers]) or []
    inside = all(isinstance(a, dict) and _number_of(a, (*GRADES, "rank")) for a in items)
    return scores is not None or ranks is not None or inside


def _number_of(answer: dict[str, Any], names: Sequence[str]) -> bool:
    return any(as_number(answer.get(name)) is not None for name in names)


def _read_of_list(row: Row) -> frozenset[str]:
    return frozenset(filter(None, (prompt_column(row), *_list_columns(row))))


def _completion_list(row: Row) -> tuple[list[list[Turn]], list[str | None], list[dict[str, Any]]]:
    """Return (completions as turns, their models, their objects) of the list of completions."""
    name = _list_columns(row)[0]
    if name is None:
        raise _no_column(row, LISTS, "an array of completions")
    answers, models, objects = [], [], []
    for position, answer in enumerate(json_list(row[name]) or []):
        where = f"{name}[{position}]"
        about = answer if isinstance(answer, dict) else {}
        if isinstance(answer, dict) and not {"role", "from"} & answer.keys():
            key = _first(answer, TEXTS, lambda value: isinstance(value, str))
            if key is None:
                raise missing(answer, keys("text")).within(where)
            answers.append([assistant(answer[key])])
        else:
            answers.append(
                either([answer] if isinstance(answer, dict) else answer, where, "assistant")
            )
        model = _first(about, MODELS, lambda value: isinstance(value, str))
        models.append(None if model is None else about[model])
        objects.append(about)
    return answers, models, objects


def read_scored_list(row: Row) -> Fields:
    """Read a list of completions with scores (more is better) or ranks (1 is best)."""
    answers, models, objects = _completion_list(row)
    name, scores_key, ranks_key = _list_columns(row)
    scores = _parallel(row, scores_key, name, len(answers))
    ranks = _parallel(row, ranks_key, name, len(answers))
    if scores is None and ranks is None:
        scores = [_inside(answer, GRADES) for answer in objects]
        ranks = [_inside(answer, ("rank",)) for answer in objects]
    by_rank = ranks is not None and any(rank is not None for rank in ranks)
    order = _whole_ranks(ranks or []) if by_rank else ranks_by_score(scores or [])
    return ranking(_asked(row), [""] * len(answers), order, models=models, scores=scores) | {
        "candidates": [
            {"cid": f"c{i}", "messages": answer, "model": models[i],
             "score": scores[i] if scores else None}
            for i, answer in enumerate(answers)
        ]
    }  # fmt: skip


def _inside(answer: dict[str, Any], names: Sequence[str]) -> float | None:
    name = _first(answer, names, lambda value: as_number(value) is not None)
    return None if name is None else as_number(answer[name])


def _parallel(row: Row, key: str | None, of: str | None, count: int) -> list[float | None] | None:
    """Return the numbers of a column that has one per completion."""
    if key is None:
        return None
    values = json_list(row[key]) or []
    if len(values) != count:
        raise RowError(
            "scores",
            f'{count} in "{of}" but {len(values)} in "{key}"',
            "give each completion one number, null where it has none",
            field=key,
        )
    for position, value in enumerate(values):
        if value is not None and as_number(value) is None:
            raise expected(value, "a number", f"{key}[{position}]")
    return [as_number(value) for value in values]


def _whole_ranks(ranks: Sequence[float | None]) -> list[int | None]:
    if any(rank is not None and not rank.is_integer() for rank in ranks):
        raise RowError("ranks", "a rank is not a whole number", "1 is the best rank", field="ranks")
    # Some count from 0: the order is the same.
    start = 1 if 0 in ranks else 0
    return [None if rank is None else int(rank) + start for rank in ranks]


def write_scored_list(record: Ranking) -> Fields:
    """Write prompt, responses and scores, or ranks if the scores do not imply them."""
    ranks = [record.ranks.get(candidate.cid) for candidate in record.candidates]
    scores = [candidate.score for candidate in record.candidates]
    row: Fields = {
        "prompt": text_or_rows(record.prompt, "user"),
        "responses": [text_or_rows(c.messages, "assistant") for c in record.candidates],
    }
    by_score = any(s is not None for s in scores) and ranks_by_score(scores) == ranks
    return row | ({"scores": scores} if by_score else {"ranks": ranks})


def read_list(row: Row) -> Fields:
    """Read a list of unranked completions."""
    answers, models, _ = _completion_list(row)
    return {
        "prompt": _asked(row),
        "candidates": [
            {"cid": f"c{i}", "messages": answer, "model": models[i]}
            for i, answer in enumerate(answers)
        ],
    }


def write_list(record: Candidates) -> Fields:
    """Write prompt and completions."""
    return {
        "prompt": text_or_rows(record.prompt, "user"),
        "completions": [text_or_rows(c.messages, "assistant") for c in record.candidates],
    }


# --- completions in numbered columns ------------------------------------------------------------

# Names of verdicts, letters only; the first that a row has counts.
VERDICTS = ("winner", "betterresponseid", "betterresponse", "preferredresponse", "preferred",
            "bestresponse", "preferredanswer", "betteranswer", "preference", "origpreference",
            "humanpreference", "humanwinner", "winnerid", "verdict", "vote", "choice", "better",
            "best", "selected", "decision", "chosen", "judgment", "judgement", "label")  # fmt: skip
# Of these, those whose sign tells which of two is better: below zero, the first.
SIGNED = ("preferencestrength", "overallpreference")
GRADED = ("score", "rating", "reward", "grade", "overallscore", "overallrating")


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _answer_series(row: Row) -> Series | None:
    """Return the numbered columns with the completions, all of them text or messages."""
    candidates = [name for name, value in row.items() if _can_ask(value) or json_list(value)]
    return completion_series(candidates)


def _of_each(row: Row, series: Series, words: Sequence[str]) -> list[str] | None:
    """Return one column per completion: `score_a`, `response_a_score`, `a_score`."""
    names = {_letters(name): name for name in row}
    for word in words:
        for wanted in (
            [word + part for part in series.parts],
            [_letters(name) + word for name in series.names],
            [word + _letters(name) for name in series.names],
            [part + word for part in series.parts],
        ):
            if all(name in names for name in wanted):
                return [names[name] for name in wanted]
    return None


def _verdict_in(row: Row, series: Series) -> str | None:
    names = {_letters(name): name for name in row if name not in series.names}
    for word in (*SIGNED, *VERDICTS):
        name = names.get(word)
        if name is None or isinstance(row[name], dict | list):
            continue
        if word != "label" or _is_verdict(row[name], series):
            return name
    return None


def _is_verdict(value: Any, series: Series) -> bool:
    """Return whether a `label` is about the sides, not a category of the row."""
    if as_number(value) is not None:
        return True
    try:
        return named_side(value, series, "label") is not None
    except RowError:
        return False


def _judged_by(row: Row, series: Series) -> tuple[str, list[str]] | None:
    """Return (how, columns): a `verdict`, a `winner` column per side, or a `score` per side."""
    verdict = _verdict_in(row, series)
    if verdict is not None:
        return "verdict", [verdict]
    winners = _of_each(row, series, ("winner", "winnermodel", "winnerresponse"))
    if winners is not None:
        names = {_letters(name): name for name in row}
        ties = [names[tie] for tie in ("winnertie", "tie") if tie in names]
        return "winner", winners + ties[:1]
    ranks = _of_each(row, series, ("rank",))
    if ranks is not None:
        return "rank", ranks
    scores = _of_each(row, series, GRADED)
    return None if scores is None else ("score", scores)


def _is_compared(row: Row) -> bool:
    series = _answer_series(row)
    if series is None or not _asks_beside(row, series) or not _is_open(row):
        return False
    return _judged_by(row, series) is not None


def _is_uncompared(row: Row) -> bool:
    series = _answer_series(row)
    if series is None or not _asks_beside(row, series) or not _is_open(row):
        return False
    return series.names_completions and _first(row, ANSWERS, _can_ask) is None


def _asks_beside(row: Row, series: Series) -> bool:
    name = prompt_column(row)
    return name is not None and name not in series.names


def read_of_columns(row: Row) -> frozenset[str]:
    series = _answer_series(row)
    if series is None:
        return frozenset()
    judged = _judged_by(row, series)
    models = _of_each(row, series, ("model", "modelname")) or []
    question = prompt_column(row)
    return frozenset(
        [*([question] if question else []), *series.names, *(judged[1] if judged else []), *models]
    )


def _columns_as_candidates(row: Row) -> tuple[Series, list[Turn], list[dict[str, Any]]]:
    series = _answer_series(row)
    if series is None:
        raise RowError(
            "missing-key",
            f"no columns of completions that differ in a number or letter. Found: {', '.join(row)}",
            "name the sides: --map chosen=COLUMN,rejected=COLUMN",
        )
    models = _of_each(row, series, ("model", "modelname"))
    return series, _asked(row), [
        {
            "cid": name,
            "messages": _side(row, name),
            "model": row[models[i]] if models and isinstance(row[models[i]], str) else None,
        }
        for i, name in enumerate(series.names)
    ]  # fmt: skip


def _side(row: Row, name: str) -> list[Turn]:
    """Read a completion; if prompt and completion list several turns, all after the first."""
    question = prompt_column(row) or ""
    asked, answered = _turn_texts(row.get(question)), _turn_texts(row[name])
    if asked is None or answered is None:
        return _turns(row[name], name, "assistant")
    if len(asked) != len(answered):
        raise RowError(
            "turns",
            f'{len(asked)} in "{question}" but {len(answered)} in "{name}"',
            "give each prompt one completion",
            field=name,
        )
    texts_in(asked, question)
    conversation: list[Turn] = []
    for prompt, completion in zip(asked, texts_in(answered, name), strict=True):
        conversation += [user(prompt), assistant(completion)]
    return conversation[1:]


def texts_in(items: Sequence[Any], key: str) -> list[str]:
    """Return a list of texts; report null, which some files have for a lost one, by its place."""
    for position, item in enumerate(items):
        if type(item) is not str:
            raise not_text(item, f"{key}[{position}]")
    return list(items)


def read_columns(row: Row) -> Fields:
    """Read completions in numbered columns, with a verdict, a winner, ranks or scores."""
    series, prompt, candidates = _columns_as_candidates(row)
    judged = _judged_by(row, series)
    if judged is None:
        raise _no_column(row, ("winner",), "a verdict")
    how, columns = judged
    if how == "score":
        scores = numbers_in(row, columns)
        ranks = ranks_by_score(scores)
        candidates = [c | {"score": s} for c, s in zip(candidates, scores, strict=True)]
    elif how == "rank":
        ranks = _whole_ranks(numbers_in(row, columns))
    elif how == "winner":
        ranks = ranks_of_winner(_one_hot(row, columns, len(candidates)), len(candidates))
    elif _letters(columns[0]) in SIGNED:
        ranks = list(PAIR_RANKS[by_sign(row, columns[0])])
    else:
        winner = named_side(row[columns[0]], series, columns[0])
        ranks = ranks_of_winner(winner, len(candidates))
    ranked = {c["cid"]: rank for c, rank in zip(candidates, ranks, strict=True) if rank is not None}
    return {"prompt": prompt, "candidates": candidates, "ranks": ranked}


def _one_hot(row: Row, columns: Sequence[str], count: int) -> int | None:
    """Return the position of the only column that is 1; -1 for the tie column, None for none."""
    marks = [as_number(int(v) if isinstance(v := row[name], bool) else v) for name in columns]
    chosen = [position for position, mark in enumerate(marks) if mark]
    if len(chosen) > 1:
        raise RowError(
            "verdict",
            f"{len(chosen)} of {', '.join(columns)} are set: one winner or a tie is expected",
            "correct or remove the row",
            field=columns[chosen[1]],
        )
    if not chosen:
        return None
    return chosen[0] if chosen[0] < count else -1


def by_sign(row: Row, key: str) -> str:
    """Read a signed strength: below zero prefers the first, above the second, 0 is a tie."""
    number = as_number(row[key])
    if number is None:
        if row[key] in (None, ""):
            return "none"
        raise expected(row[key], "a number below zero, zero or above", key)
    return "first" if number < 0 else "second" if number > 0 else "tie"


def write_columns(record: Ranking) -> Fields:
    """Write prompt, response_1, response_2 … and winner: the number of the best, or tie."""
    ranks = [record.ranks.get(candidate.cid) for candidate in record.candidates]
    row = write_uncompared(record)
    for winner in (None, -1, *range(len(ranks))):
        if ranks_of_winner(winner, len(ranks)) == ranks:
            name = None if winner is None else "tie" if winner < 0 else str(winner + 1)
            return row | {"winner": name}
    raise RowError("shape", "this format holds only one winner or a tie", "choose another format")


def write_uncompared(record: Ranking | Candidates) -> Fields:
    """Write prompt, response_1, response_2 …"""
    return {"prompt": text_or_rows(record.prompt, "user")} | {
        f"response_{i}": text_or_rows(candidate.messages, "assistant")
        for i, candidate in enumerate(record.candidates, start=1)
    }


def read_uncompared(row: Row) -> Fields:
    """Read unranked completions in numbered columns."""
    _, prompt, candidates = _columns_as_candidates(row)
    return {"prompt": prompt, "candidates": candidates}


# --- one graded completion ----------------------------------------------------------------------


def _grade_columns(row: Row) -> tuple[str | None, str | None]:
    return (
        _first(row, ANSWERS, _can_ask),
        _first(row, GRADES, lambda value: as_number(value) is not None),
    )


def _is_graded(row: Row) -> bool:
    answer, grade = _grade_columns(row)
    question = prompt_column(row)
    return None not in (answer, grade, question) and question != answer and _is_open(row)


def read_graded(row: Row) -> Fields:
    """Read a prompt, one completion and its grade; rows with equal prompts are compared by it."""
    answer, grade = _grade_columns(row)
    if answer is None:
        raise _no_column(row, ("response",), "text or messages")
    if grade is None:
        raise _no_column(row, GRADES, "a number")
    candidate = {"cid": "c0", "messages": _turns(row[answer], answer, "assistant"),
                 "score": as_number(row[grade])}  # fmt: skip
    model = _first(row, MODELS[:3], lambda value: isinstance(value, str))
    if model is not None:
        candidate["model"] = row[model]
    return {"prompt": _asked(row), "candidates": [candidate]}


def _read_of_graded(row: Row) -> frozenset[str]:
    model = _first(row, MODELS[:3], lambda value: isinstance(value, str))
    return frozenset(filter(None, (prompt_column(row), *_grade_columns(row), model)))


def write_graded(record: Candidates) -> Fields:
    """Write prompt, response and score."""
    candidate = only_candidate(record)
    row = {
        "prompt": text_or_rows(record.prompt, "user"),
        "response": text_or_rows(candidate.messages, "assistant"),
        "score": candidate.score,
    }
    return row | ({} if candidate.model is None else {"model": candidate.model})


def _is_labelled(row: Row) -> bool:
    answer, label = _first(row, ANSWERS, _can_ask), row.get("label")
    alone = row.keys().isdisjoint(("completion", "messages", "conversations"))
    return None not in (answer, prompt_column(row)) and _is_yes_or_no(label) and alone


def _is_yes_or_no(value: Any) -> bool:
    return str(value).strip().lower() in BOOLEANS


def read_labelled(row: Row) -> Fields:
    """Read a prompt, one completion, and whether it is good."""
    answer = _first(row, ANSWERS, _can_ask)
    if answer is None:
        raise _no_column(row, ("response",), "text or messages")
    if "label" not in row:
        raise missing(row, keys("label"))
    completion = _turns(row[answer], answer, "assistant")
    return {"prompt": _asked(row), "completion": completion, "label": boolean(row, "label")}


def write_labelled(record: Label) -> Fields:
    """Write prompt, response and label."""
    return {
        "prompt": text_or_rows(record.prompt, "user"),
        "response": text_or_rows(record.completion, "assistant"),
        "label": record.label,
    }


def _read_of_labelled(row: Row) -> frozenset[str]:
    return frozenset(filter(None, (prompt_column(row), _first(row, ANSWERS, _can_ask), "label")))


# --- two sides under other names ----------------------------------------------------------------

SIDES = (
    ("chosen", "rejected"), ("response_j", "response_k"), ("pos_resp", "neg_resp"),
    ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"), ("preferred", "dispreferred"),
    ("preferred_response", "dispreferred_response"), ("preferred_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"), ("positive", "negative"), ("good", "bad"),
    ("good_response", "bad_response"), ("better", "worse"), ("better_response", "worse_response"),
    ("good_edited_response", "bad_edited_response"), ("accepted", "rejected"), ("win", "lose"),
    ("winner", "loser"), ("winning_response", "losing_response"),
)  # fmt: skip


def _sides_in(row: Row) -> tuple[str, str] | None:
    for better, worse in SIDES:
        if better in row and worse in row and _can_ask(row[better]) and _can_ask(row[worse]):
            return better, worse
    return None


def _has_sides(row: Row) -> bool:
    """Return whether the row has sides and a prompt, one of them under an uncommon name."""
    sides, question = _sides_in(row), prompt_column(row)
    if sides is None or question is None or question in sides:
        return False
    # A context in text is left to the format of sides alone, as a column that joins the prompt.
    usual = question == "prompt" or (question == "context" and isinstance(row[question], str))
    return sides != SIDES[0] or not usual


def read_sides(row: Row) -> Fields:
    """Read a prompt and two sides, the better one first in the table of names."""
    sides = _sides_in(row)
    if sides is None:
        raise _no_column(row, SIDES[0], "text or messages")
    chosen, rejected = (_turns(row[side], side, "assistant") for side in sides)
    return {"prompt": _asked(row), "chosen": chosen, "rejected": rejected}


def write_sides(record: Preference) -> Fields:
    """Write question, chosen and rejected."""
    return {
        "question": text_or_rows(record.prompt, "user"),
        "chosen": text_or_rows(record.chosen, "assistant"),
        "rejected": text_or_rows(record.rejected, "assistant"),
    }


def _read_of_sides(row: Row) -> frozenset[str]:
    return frozenset(filter(None, (prompt_column(row), *(_sides_in(row) or ()))))


# Tried after all formats that know their columns by name.
FORMATS = [
    Format("scored-answers", "ranking", keys(), read_scored_list, write_scored_list,
           when=_has_scored_answers, reads=_read_of_list, asks="prompt",
           about="a prompt, a list of completions, their scores or ranks"),
    Format("answers", "candidates", keys(), read_list, write_list, when=_has_answers,
           reads=_read_of_list, asks="prompt", about="a prompt and a list of completions"),
    Format("compared-columns", "ranking", keys(), read_columns, write_columns, when=_is_compared,
           reads=read_of_columns, asks="prompt",
           about="a prompt, completions in numbered columns, and which is better"),
    Format("answer-columns", "candidates", keys(), read_uncompared, write_uncompared,
           when=_is_uncompared, reads=read_of_columns, asks="prompt",
           about="a prompt and completions in numbered columns"),
    Format("two-sides", "preference", keys(), read_sides, write_sides, when=_has_sides,
           reads=_read_of_sides, asks="prompt",
           about="a prompt and two sides under other names"),
    Format("labelled-answer", "label", keys(), read_labelled, write_labelled, when=_is_labelled,
           reads=_read_of_labelled, asks="prompt",
           about="a prompt, one completion, and a label: good or bad"),
    Format("graded", "candidates", keys(), read_graded, write_graded, when=_is_graded,
           reads=_read_of_graded, asks="prompt", about="a prompt, one completion, its score"),
]  # fmt: skip
