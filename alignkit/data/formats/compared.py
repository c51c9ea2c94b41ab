"""Formats of compared completions: ranked lists, feedback sets, judges' benchmarks, arena votes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from alignkit.data.formats.chat import is_transcript, transcript, write_transcript
from alignkit.data.formats.fields import (
    PAIR_RANKS,
    Fields,
    Format,
    Row,
    either,
    expected,
    is_number,
    keys,
    message_rows,
    missing,
    objects,
    one_of,
    only_text,
    prompt_text,
    ranking,
    ranks_by_score,
    split_sides,
    text,
    text_or_rows,
    texts,
    turns,
    two_candidates,
    user,
)
from alignkit.data.formats.instruct import asked
from alignkit.data.formats.literals import json_list
from alignkit.data.records import Ranking
from alignkit.files.problems import RowError

# --- ranked lists -------------------------------------------------------------------------------


def _read_ranked(completions_key: str, row: Row) -> Fields:
    completions, ranks = json_list(row[completions_key]), json_list(row["ranks"])
    if completions is None:
        raise expected(row[completions_key], "an array of completions", completions_key)
    if ranks is None:
        raise expected(row["ranks"], "an array of ranks", "ranks")
    if len(completions) != len(ranks):
        raise RowError(
            "ranks",
            f"{len(completions)} completions but {len(ranks)} ranks",
            "give each completion one rank; equal ranks mean a tie",
            field="ranks",
        )
    for rank in ranks:
        if rank is not None and (not isinstance(rank, int) or rank is True or rank < 1):
            raise RowError(
                "ranks",
                f"rank {rank!r} in {ranks!r:.60} is not a rank",
                "ranks are whole numbers from 1 (best); equal is a tie, null is unranked",
                field="ranks",
            )
    fields = ranking(either(row["prompt"], "prompt", "user"), [""] * len(ranks), ranks)
    for position, completion in enumerate(completions):
        where = f"{completions_key}[{position}]"
        fields["candidates"][position]["messages"] = either(completion, where, "assistant")
    annotator = row.get("annotator")
    return fields | ({} if annotator in (None, "") else {"annotator": str(annotator)})


def _write_ranked(completions_key: str, record: Ranking) -> Fields:
    row: Fields = {
        "prompt": text_or_rows(record.prompt, "user"),
        completions_key: [text_or_rows(c.messages, "assistant") for c in record.candidates],
        "ranks": [record.ranks.get(candidate.cid) for candidate in record.candidates],
    }
    return row | ({"annotator": record.annotator} if record.annotator else {})


def ranked_format(name: str, completions_key: str) -> Format:
    """Build a format of a prompt, a list of completions and a list of ranks."""
    return Format(
        name,
        "ranking",
        keys("prompt", completions_key, "ranks"),
        partial(_read_ranked, completions_key),
        partial(_write_ranked, completions_key),
        also=keys("annotator"),
        asks="prompt",
        about=f"prompt, {completions_key}, ranks",
    )


# --- two texts and a label ----------------------------------------------------------------------


def labelled_pair(
    name: str,
    sides: tuple[str, str],
    prompt_key: str,
    label_key: str,
    labels: Mapping[Any, str],
    about: str,
) -> Format:
    """Build a format of two completions and a label for the better; `labels` maps to orders."""

    def read(row: Row) -> Fields:
        completions = [text(row, side) for side in sides]
        order = PAIR_RANKS[one_of(row, label_key, labels)]
        return ranking([user(text(row, prompt_key))], completions, order)

    def write(record: Ranking) -> Fields:
        first, second, order = two_candidates(record, name)
        label = _label_for(order, labels, name)
        return {
            prompt_key: prompt_text(record),
            sides[0]: first,
            sides[1]: second,
            label_key: label,
        }

    wanted = keys(prompt_key, *sides, label_key)
    return Format(name, "ranking", wanted, read, write, asks=prompt_key, about=about)


def _label_for(order: str, labels: Mapping[Any, str], name: str) -> Any:
    for label, meaning in labels.items():
        if meaning == order:
            return label
    raise RowError("shape", f"{name} has no label for {order!r}", "choose another format")


# --- feedback sets ------------------------------------------------------------------------------


def _rating(annotation: Any) -> float | None:
    """Read a rating, which is text and may be N/A."""
    rating = annotation.get("Rating") if isinstance(annotation, dict) else None
    try:
        return float(rating) if rating not in (None, "N/A") else None
    except (TypeError, ValueError):
        return None


def _ultra_score(completion: Mapping[str, Any]) -> float | None:
    """Return the overall score, else the mean of the ratings present."""
    for name in ("fine-grained_score", "overall_score"):
        if is_number(completion.get(name)):
            return float(completion[name])
    annotations = completion.get("annotations")
    rated = annotations.values() if isinstance(annotations, dict) else ()
    ratings = [rating for each in rated if (rating := _rating(each)) is not None]
    return sum(ratings) / len(ratings) if ratings else None


def read_ultrafeedback(row: Row) -> Fields:
    """Read an instruction and completions with ratings; the ranks follow the scores."""
    completions = objects(row, "completions")
    for position, completion in enumerate(completions):
        try:
            if "response" not in completion:
                raise missing(completion, keys("response"))
            text(completion, "response")
        except RowError as error:
            raise error.within(f"completions[{position}]") from None
    scores = [_ultra_score(completion) for completion in completions]
    return ranking(
        [user(text(row, "instruction"))],
        [completion["response"] for completion in completions],
        ranks_by_score(scores),
        models=[c["model"] if isinstance(c.get("model"), str) else None for c in completions],
        scores=scores,
    )


def write_ultrafeedback(record: Ranking) -> Fields:
    """Write instruction, and completions with model and overall score."""
    completions = []
    for candidate in record.candidates:
        completion: Fields = {"response": only_text(candidate.messages, candidate.cid)}
        if candidate.model is not None:
            completion["model"] = candidate.model
        rank = record.ranks.get(candidate.cid)
        score = candidate.score if rank is None or candidate.score is not None else float(-rank)
        completion["overall_score"] = score
        completions.append(completion)
    return {"instruction": prompt_text(record), "completions": completions}


def read_nectar(row: Row) -> Fields:
    """Read a transcript that ends before the completion, and completions with ranks."""
    answers = objects(row, "answers")
    for position, answer in enumerate(answers):
        if type(answer.get("answer")) is not str:
            raise missing(answer, keys("answer")).within(f"answers[{position}]")
    ranks = [int(a["rank"]) if is_number(a.get("rank")) else None for a in answers]
    models = [a["model"] if isinstance(a.get("model"), str) else None for a in answers]
    completions = [answer["answer"] for answer in answers]
    return ranking(_nectar_prompt(text(row, "prompt")), completions, ranks, models=models)


def _nectar_prompt(prompt: str) -> list[dict[str, Any]]:
    if not is_transcript(prompt):
        return [user(prompt)]
    conversation = transcript(prompt, "prompt")
    if conversation[-1]["role"] == "assistant" and not conversation[-1]["content"].strip():
        conversation.pop()
        # The blank before "\n\nAssistant: " in these files belongs to no turn.
        conversation[-1]["content"] = conversation[-1]["content"].removesuffix(" ")
    return conversation


def write_nectar(record: Ranking) -> Fields:
    """Write prompt as a transcript, and answers with model and rank."""
    answers = [
        {
            "answer": only_text(candidate.messages, candidate.cid),
            "model": candidate.model,
            "rank": record.ranks.get(candidate.cid),
        }
        for candidate in record.candidates
    ]
    return {"prompt": write_transcript(record.prompt) + " \n\nAssistant: ", "answers": answers}


def read_webgpt(row: Row) -> Fields:
    """Read a question and two answers with scores; equal scores are a tie."""
    question = row["question"]
    if type(question) is not dict or type(question.get("full_text")) is not str:
        raise expected(question, "an object with full_text", "question")
    scores = [_score(row, "score_0"), _score(row, "score_1")]
    answers = [text(row, "answer_0"), text(row, "answer_1")]
    return ranking(
        [user(question["full_text"])], answers, ranks_by_score(scores), scores=scores
    ) | {"extra": {"question": {k: v for k, v in question.items() if k != "full_text"}}}


def _score(row: Row, key: str) -> float | None:
    value = row[key]
    if value is not None and not is_number(value):
        raise expected(value, "a number", key)
    return None if value is None else float(value)


def write_webgpt(record: Ranking) -> Fields:
    """Write question, answer_0/1 and score_0/1."""
    first, second, order = two_candidates(record, "webgpt")
    given = [candidate.score for candidate in record.candidates]
    scores = given if None not in given else WEBGPT_SCORES[order]
    carried = record.extra.get("question")
    rest = carried if isinstance(carried, dict) else {}
    return {
        "question": {"full_text": prompt_text(record), **rest},
        "answer_0": first,
        "answer_1": second,
        "score_0": scores[0],
        "score_1": scores[1],
    }


WEBGPT_SCORES: dict[str, list[float | None]] = {
    "first": [1.0, -1.0],
    "second": [-1.0, 1.0],
    "tie": [0.0, 0.0],
    "none": [None, None],
}


def read_summaries(row: Row) -> Fields:
    """Read a post and two summaries; `choice` is the better one's position."""
    info, summaries = row["info"], objects(row, "summaries")
    if type(info) is not dict or type(info.get("post")) is not str:
        raise expected(info, "an object with post", "info")
    if [type(summary.get("text")) for summary in summaries] != [str, str]:
        raise expected(row["summaries"], "two summaries with text", "summaries")
    fields = ranking(
        [user(info["post"])],
        [summary["text"] for summary in summaries],
        PAIR_RANKS[one_of(row, "choice", {0: "first", 1: "second"})],
        models=[s["policy"] if isinstance(s.get("policy"), str) else None for s in summaries],
    )
    return fields | ({"annotator": row["worker"]} if isinstance(row.get("worker"), str) else {})


def write_summaries(record: Ranking) -> Fields:
    """Write info.post, summaries, choice and worker."""
    first, second, order = two_candidates(record, "summarize")
    models = [candidate.model for candidate in record.candidates]
    row = {
        "info": {"post": prompt_text(record)},
        "summaries": [
            {"text": side} | ({} if model is None else {"policy": model})
            for side, model in zip((first, second), models, strict=True)
        ],
        "choice": _label_for(order, {0: "first", 1: "second"}, "summarize"),
    }
    return row | ({"worker": record.annotator} if record.annotator else {})


# --- judges' benchmarks -------------------------------------------------------------------------


_ANNOTATOR = re.compile(r"annotator\d+")


def read_pandalm(row: Row) -> Fields:
    """Read two responses and the verdicts of several annotators, 0 a tie; the majority ranks."""
    completions = [text(row, "response1"), text(row, "response2")]
    votes = [
        one_of(row, key, {0: "tie", 1: "first", 2: "second"})
        for key in sorted(row)
        if _ANNOTATOR.fullmatch(key)
    ]
    counts = {order: votes.count(order) for order in ("first", "second", "tie")}
    top = max(counts.values(), default=0)
    leaders = [order for order, count in counts.items() if count == top]
    order = leaders[0] if len(leaders) == 1 else "tie"
    return ranking(asked(row), completions, PAIR_RANKS[order])


def write_pandalm(record: Ranking) -> Fields:
    """Write instruction, response1/2 and one verdict, unless the row kept its own."""
    first, second, order = two_candidates(record, "pandalm")
    row: Fields = {
        "instruction": prompt_text(record),
        "input": "",
        "response1": first,
        "response2": second,
    }
    if not any(_ANNOTATOR.fullmatch(key) for key in record.extra):
        labels = {0: "tie", 1: "first", 2: "second"}
        row["annotator1"] = _label_for(order, labels, "pandalm")
    return row


def read_rm_bench(row: Row) -> Fields:
    """Read several chosen and several rejected texts: every chosen beats every rejected."""
    chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
    cids = [
        f"{side}{i}"
        for side, all_ in (("chosen", chosen), ("rejected", rejected))
        for i in range(len(all_))
    ]
    ranks = [1] * len(chosen) + [2] * len(rejected)
    return ranking([user(text(row, "prompt"))], chosen + rejected, ranks, cids=cids)


def write_rm_bench(record: Ranking) -> Fields:
    """Write prompt, chosen[] and rejected[]."""
    sides: dict[int | None, list[str]] = {1: [], 2: []}
    for candidate in record.candidates:
        rank = record.ranks.get(candidate.cid)
        if rank not in sides:
            raise RowError("shape", "rm-bench holds two ranks", "choose another format")
        sides[rank].append(only_text(candidate.messages, candidate.cid))
    return {"prompt": prompt_text(record), "chosen": sides[1], "rejected": sides[2]}


def _is_rm_bench(row: Row) -> bool:
    return all(
        isinstance(row[side], list) and row[side] and isinstance(row[side][0], str)
        for side in ("chosen", "rejected")
    )


ARENA_WINNERS = {
    "model_a": "first",
    "model_b": "second",
    "tie": "tie",
    "tie (bothbad)": "tie",
    "both_bad": "tie",
    None: "none",
}


def read_arena(row: Row) -> Fields:
    """Read two conversations with the same user turns, and the winner.

    The vote is on assistant turn number `turn`, if the row has one; MT-bench also keeps the later
    turns.
    """
    left = _until_answer(turns(row["conversation_a"], "conversation_a"), row.get("turn"))
    right = _until_answer(turns(row["conversation_b"], "conversation_b"), row.get("turn"))
    fields = split_sides(left, right)
    if "prompt_chosen" in fields:
        shared = len(fields["prompt"])
        fields = {"prompt": fields["prompt"], "chosen": left[shared:], "rejected": right[shared:]}
    order = PAIR_RANKS[one_of(row, "winner", ARENA_WINNERS)]
    models = [text(row, "model_a"), text(row, "model_b")]
    result = ranking(fields["prompt"], ["", ""], order, cids=["a", "b"], models=models)
    for candidate, side in zip(result["candidates"], ("chosen", "rejected"), strict=True):
        candidate["messages"] = fields[side]
    return result


def _until_answer(conversation: list[dict[str, Any]], number: Any) -> list[dict[str, Any]]:
    """Cut the conversation after the assistant turn of this number, counted from 1."""
    places = [at for at, turn in enumerate(conversation) if turn["role"] == "assistant"]
    exists = isinstance(number, int) and 1 <= number <= len(places)
    return conversation[: places[number - 1] + 1] if exists else conversation


def write_arena(record: Ranking) -> Fields:
    """Write model_a/b, winner and conversation_a/b."""
    if len(record.candidates) != 2:
        raise RowError("shape", "arena holds two candidates", "alignkit data pairs")
    left, right = record.candidates
    first, second = record.ranks.get(left.cid), record.ranks.get(right.cid)
    winner = None
    if first is not None and second is not None:
        winner = "tie" if first == second else "model_a" if first < second else "model_b"
    return {
        "model_a": left.model or left.cid,
        "model_b": right.model or right.cid,
        "winner": winner,
        "conversation_a": message_rows([*record.prompt, *left.messages]),
        "conversation_b": message_rows([*record.prompt, *right.messages]),
    }


def read_alpacaeval(row: Row) -> Fields:
    """Read two outputs and a preference from 1 (first) to 2 (second); 1.5 and 0 are ties."""
    preference = row["preference"]
    if preference is not None and not is_number(preference):
        raise expected(preference, "a number from 1 to 2", "preference")
    models = [row.get("generator_1"), row.get("generator_2")]
    return ranking(
        asked(row),
        [text(row, "output_1"), text(row, "output_2")],
        PAIR_RANKS[_preferred(preference)],
        models=[model if isinstance(model, str) else None for model in models],
    )


def _preferred(preference: float | None) -> str:
    if preference is None:
        return "none"
    if preference in (0, 1.5):
        return "tie"
    return "first" if preference < 1.5 else "second"


def write_alpacaeval(record: Ranking) -> Fields:
    """Write instruction, output_1/2, generator_1/2 and preference."""
    first, second, order = two_candidates(record, "alpacaeval")
    numbers = {1.0: "first", 2.0: "second", 1.5: "tie", None: "none"}
    row: Fields = {"instruction": prompt_text(record), "output_1": first, "output_2": second}
    for position, candidate in enumerate(record.candidates, start=1):
        if candidate.model is not None:
            row[f"generator_{position}"] = candidate.model
    return row | {"preference": _label_for(order, numbers, "alpacaeval")}


def holds_objects(value: Any) -> bool:
    """Return whether a list holds objects rather than texts."""
    return any(isinstance(item, dict) for item in json_list(value) or ())


FORMATS = [
    ranked_format("ranked", "completions"),
    ranked_format("ranked-responses", "responses"),
    Format("ultrafeedback", "ranking", keys("instruction", "completions"), read_ultrafeedback,
           write_ultrafeedback, when=lambda row: holds_objects(row["completions"]),
           asks="instruction", about="instruction, completions with ratings"),
    Format("nectar", "ranking", keys("prompt", "answers"), read_nectar, write_nectar,
           when=lambda row: holds_objects(row["answers"]), asks="prompt",
           about="a transcript and completions with ranks"),
    labelled_pair("shp", ("human_ref_A", "human_ref_B"), "history", "labels",
                  {1: "first", 0: "second"}, "Stanford Human Preferences"),
    Format("webgpt", "ranking", keys("question", "answer_0", "answer_1", "score_0", "score_1"),
           read_webgpt, write_webgpt, about="WebGPT comparisons"),
    Format("summarize", "ranking", keys("info", "summaries", "choice"), read_summaries,
           write_summaries, also=keys("worker"), about="summarize-from-feedback comparisons"),
    Format("pandalm", "ranking", keys("instruction", "response1", "response2"), read_pandalm,
           write_pandalm, asks="instruction", about="PandaLM test set"),
    labelled_pair("auto-j", ("response 1", "response 2"), "prompt", "label",
                  {0: "first", 1: "second", 2: "tie"}, "Auto-J pairwise test set"),
    labelled_pair("llmbar", ("output_1", "output_2"), "input", "label",
                  {1: "first", 2: "second"}, "LLMBar"),
    Format("rm-bench", "ranking", keys("prompt", "chosen", "rejected"), read_rm_bench,
           write_rm_bench, when=_is_rm_bench, asks="prompt", about="RM-Bench"),
    Format("arena", "ranking",
           keys("model_a", "model_b", "winner", "conversation_a", "conversation_b"), read_arena,
           write_arena, about="Chatbot Arena votes"),
    Format("alpacaeval", "ranking", keys("instruction", "output_1", "output_2", "preference"),
           read_alpacaeval, write_alpacaeval, also=keys("generator_1", "generator_2"),
           asks="instruction", about="AlpacaEval annotations"),
]  # fmt: skip
