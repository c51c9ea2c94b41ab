"""Find personal data by bounded patterns and checksums, and mask it consistently in a row.

The same e-mail address becomes the same `[EMAIL_1]` everywhere in a row. Every pattern has bounded
repetition, so hostile text costs linear time.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

from alignkit.errors import DataError

Finder = Callable[[str], Iterable[str]]

_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}"
    r"(?![\w-])"
)
_PHONE = re.compile(
    r"(?<![\w.+(])(?:"
    r"(?:\+|00)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}"
    r"|\d{3}[.-]\d{3}[.-]\d{4}"
    r")(?![\w])"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?![\w:])")
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")


def luhn(digits: str) -> bool:
    """Return whether a number passes the Luhn check of cards (ISO/IEC 7812-1)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + position % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(text: str) -> bool:
    """Return whether an IBAN's check digits are right (ISO 13616: remainder 1 modulo 97)."""
    moved = text[4:] + text[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def _emails(text: str) -> Iterable[str]:
    return _EMAIL.findall(text) if "@" in text else ()


def _phones(text: str) -> Iterable[str]:
    return (match[0] for match in _PHONE.finditer(text))


def _cards(text: str) -> Iterable[str]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if luhn(digits) and len(set(digits)) > 1:
            yield match[0]


def _ibans(text: str) -> Iterable[str]:
    for match in _IBAN.finditer(text):
        if iban(match[0].replace(" ", "")):
            yield match[0]


def _addresses(text: str) -> Iterable[str]:
    candidates = [match[0] for match in _IPV4.finditer(text)]
    candidates += [match[0] for match in _IPV6.finditer(text) if match[0].count(":") > 1]
    for candidate in candidates:
        try:
            ipaddress.ip_address(candidate)
        except ValueError:
            continue
        yield candidate


# The order matters: an IBAN holds digits that look like a card, a card some like a phone.
FINDERS: dict[str, Finder] = {
    "IBAN": _ibans,
    "CARD": _cards,
    "EMAIL": _emails,
    "IP": _addresses,
    "PHONE": _phones,
}


@cache
def name_finder() -> Finder:
    """Return a finder of person names by spaCy's small English model, an optional library."""
    try:
        import spacy

        pipeline = spacy.load("en_core_web_sm", disable=["parser", "lemmatizer"])
    except (ImportError, OSError):
        raise DataError(
            "finding person names needs spaCy and its model",
            hint="Fix: pip install spacy && python -m spacy download en_core_web_sm",
        ) from None

    def names(text: str) -> Iterable[str]:
        return (entity.text for entity in pipeline(text).ents if entity.label_ == "PERSON")

    return names


@dataclass
class Masker:
    """Masks the personal data of one row; equal data get equal labels across its texts."""

    finders: dict[str, Finder] = field(default_factory=lambda: dict(FINDERS))
    _names: dict[str, str] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def mask(self, text: str) -> str:
        """Replace every match by its label."""
        for kind, find in self.finders.items():
            for match in sorted(set(find(text)), key=lambda item: (text.find(item), -len(item))):
                text = text.replace(match, self._label(kind, match))
        return text

    def _label(self, kind: str, match: str) -> str:
        plain = match if kind == "EMAIL" else re.sub(r"[ .()-]", "", match)
        key = f"{kind} {plain.lower()}"
        if key not in self._names:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._names[key] = f"[{kind}_{self._counts[kind]}]"
        return self._names[key]
