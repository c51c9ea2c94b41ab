"""Explain rows of the wrong kind: what they are good for, and the command that takes them."""

from __future__ import annotations

from collections.abc import Collection

from alignkit.errors import DataError

# What a reader expects, by one of the kinds it takes that no other reader takes.
EXPECTED: dict[str, str] = {
    "demonstration": "demonstrations (prompts with one good completion)",
    "ranking": "rankings or preferences",
    "candidates": "candidates (prompts with several unranked completions)",
    "prompt": "prompts",
}

PLURAL: dict[str, str] = {
    "demonstration": "demonstrations",
    "prompt": "prompts without completions",
    "candidates": "candidates, completions that nobody has ranked",
    "ranking": "rankings",
    "preference": "preferences",
    "label": "single completions labeled good or bad",
    "event": "votes of annotators",
    "judgement": "judgements of two models",
}

TO_RANK = "Let people rank them: alignkit rank {file} --output votes.jsonl --annotator NAME"
FROM_PROMPTS = "Sample completions: alignkit generate --prompts {file} --output candidates"
ON_PROMPTS = f"{FROM_PROMPTS}; or train on them: alignkit ppo --prompts {{file}}"
JUDGED = "Report on them: alignkit eval winrate {file}"
COMPARED = "Train on them: alignkit dpo --data {file}, or alignkit reward --data {file}"
LABELLED = (
    "No stage learns from labels alone: write the good ones as rows of prompt and completion for "
    "sft, or a good and a bad completion of one prompt as a row of prompt, chosen and rejected"
)

# What is expected -> what the rows are -> what to do.
REMEDIES: dict[str, dict[str, str]] = {
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
        "candidates": f"{TO_RANK}; then give votes.jsonl",
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
        "event": "Give the file of candidates or prompts that was voted on",
        "judgement": JUDGED,
    },
}


def wrong_kind(
    kind: str, expected: Collection[str], file: str, line: int | None = None
) -> DataError:
    """Return the error for a row of `kind` in a file where `expected` kinds are read."""
    asked = next((name for name in ("prompt", *EXPECTED) if name in expected), "")
    words = EXPECTED.get(asked, f"{' or '.join(sorted(expected))} records")
    hint = REMEDIES.get(asked, {}).get(kind, "Give the right file").format(file=file)
    where = file if line is None else f"{file}:{line}"
    return DataError(f"these are {PLURAL[kind]}, but {words} are expected", where=where, hint=hint)
