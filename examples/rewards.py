"""Rewards as Python functions: one number per completion, larger is better.

    alignkit ppo --model runs/sft --prompts prompts.jsonl --output runs/ppo \
        --reward rewards:is_polite --reward rewards:length_is_right \
        --reward-weights 1 --reward-weights 0.5

The module is looked up in the working directory. Its source is part of the run: after a change of
it, the command refuses to resume, naming the change.
"""

import re

POLITE = re.compile(r"\b(please|welcome|of course|gladly|would you like|thank)", re.IGNORECASE)


def is_polite(prompt: str, completion: str) -> float:
    """1 for a completion with a polite word, else 0."""
    return float(bool(POLITE.search(completion)))


def length_is_right(prompts: list[str], completions: list[str]) -> list[float]:
    """Take a whole batch, as the plural names say; lose a point per 10 words away from 12."""
    return [-abs(len(text.split()) - 12) / 10 for text in completions]
