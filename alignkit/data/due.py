"""Rows of one kind where another is due: what they are good for, and the command for it."""

from __future__ import annotations

from collections.abc import Collection

from alignkit.errors import DataError

# What a reader asks for, by one of the kinds it takes that no other reader takes with it.
ASKED: dict[str, str] = {
    "demonstration": "demonstrations (prompts with one good answer) are due",
    "ranking": "rankings or preferences are due",
    "candidates": "candidates (prompts with several unranked answers) are due",
    "prompt": "prompts are due",
}

PLURAL: dict[str, str] = {
    "demonstration": "demonstrations",
    "prompt": "prompts without answers",
    "candidates": "candidates, answers that nobody has ranked",
    "ranking": "rankings",
    "preference": "preferences",
    "label": "labelled answers, good or bad without a partner",
    "event": "votes of annotators",
    "judgement": "judgements of two models",
}

TO_RANK = "Let people rank them: alignkit rank {file} --output votes.jsonl --annotator NAME"
FROM_PROMPTS = "Let a model answer: alignkit generate --prompts {file} --output candidates"
ON_PROMPTS = f"{FROM_PROMPTS}; or practise on them: alignkit ppo --prompts {{file}}"
JUDGED = "Report on them: alignkit eval winrate {file}"
COMPARED = "Train on them: alignkit dpo --data {file}, or alignkit reward --data {file}"
LABELLED = (
    "No stage learns from labels alone: write the good ones as rows of prompt and completion for "
    "sft, or a good and a bad answer of one prompt as a row of prompt, chosen and rejected"
)

# What is due -> what the rows are -> what mends it.
MENDED: dict[str, dict[str, str]] = {
    "demonstration": {
        "prompt": ON_PROMPTS,
        "candidates": f"{TO_RANK}; then train on the votes: alignkit dpo --data votes.jsonl",
        "ranking": COMPARED,
        "preference": COMPARED,
        "label": LABELLED,
        "event": COMPARED,
        "judgement": JUDGED,
    },
    "ranking": {
        "demonstration": "Train on them: alignkit sft --data {file}",
        "prompt": ON_PROMPTS,
        "candidates": f"{TO_RANK}; votes.jsonl is what is due",
        "label": LABELLED,
        "judgement": JUDGED,
    },
    "candidates": {
        "demonstration": FROM_PROMPTS,
        "prompt": FROM_PROMPTS,
        "ranking": COMPARED,
        "preference": COMPARED,
        "label": FROM_PROMPTS,
        "event": COMPARED,
        "judgement": JUDGED,
    },
    "prompt": {
        "event": "Give the file of candidates or prompts that the votes are about",
        "judgement": JUDGED,
    },
}


def wrong_kind(kind: str, due: Collection[str], file: str, line: int | None = None) -> DataError:
    """The error for a row of `kind` in a file where `due` kinds are read."""
    asked = next((name for name in ("prompt", *ASKED) if name in due), "")
    told = ASKED.get(asked, f"{' or '.join(sorted(due))} records are due")
    hint = MENDED.get(asked, {}).get(kind, "Give the right file").format(file=file)
    where = file if line is None else f"{file}:{line}"
    return DataError(f"these are {PLURAL[kind]}, and {told}", where=where, hint=hint)
