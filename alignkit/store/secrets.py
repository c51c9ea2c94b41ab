"""Hide tokens, keys and passwords in anything that is written or shown.

A secret is recognized by its form, by the name of the setting that holds it, or as the value of an
environment variable with such a name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HIDDEN = "[secret]"
KINDS = {
    "Hugging Face": r"hf_[A-Za-z0-9]{8,}",
    # Not inside a word, as in "task-specific".
    "OpenAI, Anthropic": r"(?:(?<![A-Za-z0-9])sk-|sk-(?:proj|ant|or)-)[A-Za-z0-9_-]{8,}",
    "GitHub": r"gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}",
    "GitLab": r"glpat-[A-Za-z0-9_-]{16,}",
    "AWS": r"A[KS]IA[0-9A-Z]{16}",
    "Google": r"AIza[0-9A-Za-z_-]{35}",
    "Slack": r"xox[abeprs]-[A-Za-z0-9-]{8,}",
    "name and password in an address": r"(?<=://)[^/@\s:]{0,64}:[^/@\s]{1,256}(?=@)",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*KEY-----|\Z)",
}
_TEXT = re.compile("|".join(KINDS.values()))
# A setting's name ends in one of these; `max_new_tokens` and `eos_token` hold no secret.
_SETTING = re.compile(
    r"(^|[._-])(api[_-]?key|secret|secret[_-]access[_-]key|password|passwd|credentials?"
    r"|authorization|(hf|access|auth|api)[_-]token)$",
    re.IGNORECASE,
)
# Names of variables are free: a word anywhere in one is enough.
_VARIABLE = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8  # a shorter value of a variable would hit words


@dataclass(frozen=True)
class Secrets:
    """Hide what has the form of a secret, and these values, the longest first."""

    values: tuple[str, ...] = ()

    def hide(self, text: str) -> str:
        """Replace every secret in the text."""
        for value in self.values:
            text = text.replace(value, HIDDEN)
        return _TEXT.sub(HIDDEN, text)

    def hide_in(self, value: Any) -> Any:
        """Replace secrets in every text of a value, and what a setting named as a secret holds."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide_in(key): self._held(key, entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_in(entry) for entry in value]
        return value

    def _held(self, key: object, entry: Any) -> Any:
        if entry and names_a_secret(key) and not isinstance(entry, Mapping):
            return HIDDEN
        return self.hide_in(entry)


def names_a_secret(key: object) -> bool:
    """Whether a setting of this name holds a secret."""
    return isinstance(key, str) and bool(_SETTING.search(key))


def secrets_of_environment() -> Secrets:
    """Those that this process's environment holds now."""
    values = {
        value
        for name, value in os.environ.items()
        if _VARIABLE.search(name) and len(value) >= _SHORTEST
    }
    return Secrets(tuple(sorted(values, key=lambda value: (-len(value), value))))


def without_secrets(value: Any) -> Any:
    """The same value with tokens, keys and passwords in it replaced by `[secret]`."""
    return secrets_of_environment().hide_in(value)
