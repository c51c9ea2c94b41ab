"""Formats of instructions: Alpaca and its preference forms, Self-Instruct, AlpacaEval outputs."""

from __future__ import annotations

from typing import Any

from alignkit.data.formats.chat import demonstration_of, pair_format, split_messages
from alignkit.data.formats.fields import (
    Fields,
    Format,
    Row,
    Turn,
    assistant,
    either,
    expected,
    keys,
    message_rows,
    missing,
    only_candidate,
    only_text,
    optional_text,
    split_completion,
    text,
    text_or_rows,
    texts,
    turns,
    user,
)
from alignkit.data.formats.template_keys import calls_of
from alignkit.data.records import Candidates, Demonstration, Message, Preference, Prompt
from alignkit.files.problems import RowError


def asked(row: Row) -> list[Turn]:
    """Read the instruction; input, system and history are columns that join the prompt."""
    return [user(text(row, "instruction"))]


def asking(prompt: list[Message]) -> Fields:
    """Write a prompt as instruction, system and history, with an empty input."""
    rest = list(prompt)
    row: Fields = {}
    if rest and rest[0].role == "system":
        row["system"] = rest.pop(0).content
    if not rest or rest[-1].role != "user":
        raise RowError(
            "shape", "Alpaca needs a prompt that ends with a user turn", "choose another format"
        )
    question = rest.pop()
    row = {"instruction": question.content, "input": "", **row}
    if rest:
        row["history"] = _exchanges(rest)
    return row


def _exchanges(rest: list[Message]) -> list[list[str]]:
    pairs = list(zip(rest[0::2], rest[1::2], strict=False))
    if len(rest) % 2 or any((a.role, b.role) != ("user", "assistant") for a, b in pairs):
        raise RowError(
            "shape",
            "Alpaca's history holds only alternating user and assistant turns",
            "choose a format that holds messages",
        )
    return [[question.content, answer.content] for question, answer in pairs]


def read_alpaca(row: Row) -> Fields:
    """Read instruction, input and output."""
    return demonstration_of(asked(row), [assistant(text(row, "output"))])


def write_alpaca(record: Demonstration) -> Fields:
    """Write instruction, input and output."""
    prompt, completion = split_messages(record)
    return asking(prompt) | {"output": only_text(completion, "messages")}


def read_alpaca_preference(row: Row) -> Fields:
    """Read instruction, input, chosen and rejected."""
    return {
        "prompt": asked(row),
        "chosen": [assistant(text(row, "chosen"))],
        "rejected": [assistant(text(row, "rejected"))],
    }


def write_alpaca_preference(record: Preference) -> Fields:
    """Write instruction, input, chosen and rejected."""
    return asking(record.prompt) | {
        "chosen": only_text(record.chosen, "chosen"),
        "rejected": only_text(record.rejected, "rejected"),
    }


def read_alpaca_outputs(row: Row) -> Fields:
    """Read the old preference form: output is [chosen, rejected]."""
    outputs = texts(row, "output")
    if len(outputs) != 2:
        raise expected(outputs, "[chosen, rejected]", "output")
    return {
        "prompt": asked(row),
        "chosen": [assistant(outputs[0])],
        "rejected": [assistant(outputs[1])],
    }


def write_alpaca_outputs(record: Preference) -> Fields:
    """Write instruction, input and output: [chosen, rejected]."""
    sides = [only_text(record.chosen, "chosen"), only_text(record.rejected, "rejected")]
    return asking(record.prompt) | {"output": sides}


# --- ms-swift -----------------------------------------------------------------------------------


def _querying(prompt: list[Message]) -> Fields:
    row = asking(prompt)
    row.pop("input")
    return {"query": row.pop("instruction"), **row}


def read_query(row: Row) -> Fields:
    """Read query and response."""
    return demonstration_of(
        either(row["query"], "query", "user"), either(row["response"], "response", "assistant")
    )


def write_query(record: Demonstration) -> Fields:
    """Write query, response, system and history."""
    prompt, completion = split_messages(record)
    return _querying(prompt) | {"response": only_text(completion, "messages")}


def read_query_preference(row: Row) -> Fields:
    """Read query, response and rejected_response."""
    return {
        "prompt": either(row["query"], "query", "user"),
        "chosen": either(row["response"], "response", "assistant"),
        "rejected": either(row["rejected_response"], "rejected_response", "assistant"),
    }


def write_query_preference(record: Preference) -> Fields:
    """Write query, response, rejected_response, system and history."""
    return _querying(record.prompt) | {
        "response": only_text(record.chosen, "chosen"),
        "rejected_response": only_text(record.rejected, "rejected"),
    }


def read_rejected_response(row: Row) -> Fields:
    """Read messages that end in the chosen completion, and rejected_response."""
    prompt, chosen = split_completion(turns(row["messages"], "messages"), "messages")
    rejected = either(row["rejected_response"], "rejected_response", "assistant")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write_rejected_response(record: Preference) -> Fields:
    """Write messages and rejected_response."""
    return {
        "messages": message_rows([*record.prompt, *record.chosen]),
        "rejected_response": text_or_rows(record.rejected, "assistant"),
    }


# --- function calling ---------------------------------------------------------------------------


def read_calls(row: Row) -> Fields:
    """Read a query and the calls that answer it, often as JSON text."""
    calls = calls_of(row["answers"])
    if not calls:
        raise expected(row["answers"], "an array of calls {name, arguments}", "answers")
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    return {"messages": [*either(row["query"], "query", "user"), turn]}


def write_calls(record: Demonstration) -> Fields:
    """Write query and answers, each call as {name, arguments}."""
    prompt, completion = split_messages(record)
    calls = completion[0].tool_calls if len(completion) == 1 else None
    if not calls or completion[0].content:
        raise RowError(
            "shape", "xlam needs a completion of tool calls only", "choose another format"
        )
    named = [call.get("function") for call in calls]
    return {"query": only_text(prompt, "messages"), "answers": named}


# --- Self-Instruct ------------------------------------------------------------------------------


def read_self_instruct(row: Row) -> Fields:
    """Read an instruction with one instance {input, output}."""
    instances = row["instances"]
    if type(instances) is not list or len(instances) != 1 or type(instances[0]) is not dict:
        raise expected(instances, "an array of one instance {input, output}", "instances")
    instance = instances[0]
    if "output" not in instance:
        raise missing(instance, keys("output")).within("instances[0]")
    try:
        given, output = optional_text(instance, "input"), text(instance, "output")
    except RowError as error:
        raise error.within("instances[0]") from None
    instruction = text(row, "instruction")
    question = "\n".join(part for part in (instruction, given) if part)
    return demonstration_of([user(question)], [assistant(output)])


def write_self_instruct(record: Demonstration) -> Fields:
    """Write an instruction with one instance."""
    row = write_alpaca(record)
    row["instances"] = [{"input": row.pop("input"), "output": row.pop("output")}]
    return row


def read_predictions(row: Row) -> Fields:
    """Read Self-Instruct's predictions: a prompt, a model's text and a person's text."""
    sides = [("response", text(row, "response")), ("target", text(row, "target"))]
    return {
        "prompt": [user(text(row, "prompt"))],
        "candidates": [{"cid": cid, "messages": [assistant(side)]} for cid, side in sides],
    }


def write_predictions(record: Candidates) -> Fields:
    """Write prompt, response and target."""
    sides = {c.cid: only_text(c.messages, c.cid) for c in record.candidates}
    if sides.keys() != {"response", "target"}:
        raise RowError(
            "shape", "needs candidates named response and target", "choose another format"
        )
    return {"prompt": only_text(record.prompt, "prompt"), **sides}


def read_eval_output(row: Row) -> Fields:
    """Read one model's output for an instruction, as in AlpacaEval."""
    candidate: dict[str, Any] = {
        "cid": "c0",
        "messages": [assistant(text(row, "output"))],
        "model": text(row, "generator"),
    }
    return {"prompt": asked(row), "candidates": [candidate]}


def write_eval_output(record: Candidates) -> Fields:
    """Write instruction, output and generator."""
    candidate = only_candidate(record)
    row = {
        "instruction": only_text(record.prompt, "prompt"),
        "output": only_text(candidate.messages, candidate.cid),
    }
    return row | ({} if candidate.model is None else {"generator": candidate.model})


def _prompt_alone(name: str) -> Format:
    """Build a format of a prompt in a column of this name, text or messages."""

    def read(row: Row) -> Fields:
        return {"prompt": either(row[name], name, "user")}

    def write(record: Prompt) -> Fields:
        return {name: text_or_rows(record.prompt, "user")}

    return Format(
        name, "prompt", keys(name), read, write, asks=name, sample=name, about=f"{name} alone"
    )


# Preferences and judged outputs, which require more than an instruction and an output.
COMPARED = [
    Format("alpaca-preference", "preference", keys("instruction", "chosen", "rejected"),
           read_alpaca_preference, write_alpaca_preference, asks="instruction",
           about="Alpaca with chosen and rejected"),
    Format("alpaca-outputs", "preference", keys("instruction", "output"), read_alpaca_outputs,
           write_alpaca_outputs, asks="instruction",
           when=lambda row: isinstance(row["output"], list),
           about="Alpaca with output: [chosen, rejected]"),
    Format("alpacaeval-outputs", "candidates", keys("instruction", "output", "generator"),
           read_eval_output, write_eval_output, asks="instruction",
           about="AlpacaEval model outputs"),
    Format("xlam", "demonstration", keys("query", "answers"), read_calls, write_calls,
           when=lambda row: "tools" in row, asks="query",
           about="xLAM: query, tools, and calls as completion"),
    Format("swift-preference", "preference", keys("query", "response", "rejected_response"),
           read_query_preference, write_query_preference,
           asks="query", sample="query", about="ms-swift: query, response, rejected_response"),
    Format("swift-messages", "preference", keys("messages", "rejected_response"),
           read_rejected_response, write_rejected_response, asks="messages",
           about="ms-swift: messages and rejected_response"),
    Format("self-instruct", "demonstration", keys("instruction", "instances"), read_self_instruct,
           write_self_instruct, asks="instruction", about="Self-Instruct tasks with one instance"),
    Format("self-instruct-predictions", "candidates", keys("prompt", "response", "target"),
           read_predictions, write_predictions, about="Self-Instruct predictions"),
]  # fmt: skip

FORMATS = [
    Format("alpaca", "demonstration", keys("instruction", "output"), read_alpaca, write_alpaca,
           asks="instruction", about="instruction, input, output"),
    Format("swift", "demonstration", keys("query", "response"), read_query, write_query,
           asks="query", sample="query", about="ms-swift: query and response"),
]  # fmt: skip

# Prompts and completions under further names; after all formats that require more.
PAIRS = [
    pair_format(f"{question}-{answer}", question, answer, f"{question} and {answer}")
    for question, answer in (
        ("question", "response"), ("prompt", "output"), ("prompt", "answer"),
        ("problem", "solution"), ("instruction", "completion"), ("instruction", "answer"),
        ("question", "output"), ("query", "answer"), ("input", "output"))
]  # fmt: skip

# Prompts alone, after everything else.
QUESTIONS = [_prompt_alone(name) for name in ("instruction", "question", "query")]
