"""Load a tokenizer and use it, within limits; `tokenizer_check` runs this in another process.

A program of its own that imports nothing of alignkit, so it starts in a tenth of a second.
"""

from __future__ import annotations

import base64
import json
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

CPU_SECONDS = 30
MEMORY_BYTES = 2 << 30
MOST_TRIED = 400
REPEATED = 400
MOST_GROWTH = 32  # characters or tokens per byte of text, in texts of at least FEWEST bytes
FEWEST = 64
LONGEST_TOKEN = 16_384
TOKENIZER = "tokenizer.json"
FURTHER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
BROKEN, MEMORY, GROWS = 1, 21, 22
SAMPLES = [
    "The shop opens at nine: shall we send it?",
    "Zażółć gęślą jaźń, 東京 и Москва, مرحبا 🙂\u200b",
    *(
        each * REPEATED
        for each in ("a", " ", "\n", "1", ".", "é", "\u0301", "語", "🙂", "ab ", "1.")
    ),
]


def _try_limited(place: Path) -> NoReturn:
    """Load and use the tokenizer of a staged directory, within limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        tokenizer, rules = _load(place)
        stages = _stages(rules)
        if _longest_token(tokenizer) > LONGEST_TOKEN:
            sys.stdout.write(f"a token has more than {LONGEST_TOKEN:,} characters")
            sys.exit(GROWS)
        for text in _texts(rules):
            _use(tokenizer, stages, text)
    except (MemoryError, SystemExit) as stop:
        sys.exit(MEMORY if isinstance(stop, MemoryError) else stop.code)
    except BaseException as error:  # the library panics and raises bare exceptions
        sys.stdout.write(f"{type(error).__name__}: {error}".replace("\n", " ")[:300])
        sys.exit(BROKEN)
    sys.exit(0)


def _load(place: Path) -> tuple[Any, dict[str, Any]]:
    """Return the backend, and the rules it was made from."""
    file = place / TOKENIZER
    if file.is_file():
        from tokenizers import Tokenizer

        rules = json.loads(file.read_text(encoding="utf-8"))
        further = list(dict.fromkeys(_further_tokens(place)))
        # Loading normalises every added token, in all stages at once, so try them stage by stage
        # before.
        stages = _stages(rules)
        for text in (*_strings(rules.get("added_tokens")), *further, *_texts(rules)):
            _normalise(stages, text)
        made: Any = Tokenizer.from_file(str(file))
        made.add_special_tokens(further)
        return made, rules
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    backend = getattr(made, "backend_tokenizer", None)
    if backend is None:
        return made, {}
    return backend, json.loads(backend.to_str())


def _further_tokens(place: Path) -> Iterator[str]:
    """Yield what the other files add to the vocabulary; a few texts too many do no harm here."""
    for name in FURTHER:
        if (place / name).is_file():
            content = json.loads((place / name).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                content.pop("chat_template", None)
                yield from content if name == FURTHER[-1] else _strings(content)


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _longest_token(tokenizer: Any) -> int:
    """Return the length in characters of the longest token that a model may sample."""
    return max(map(len, tokenizer.get_vocab()), default=0)


def _stages(rules: dict[str, Any]) -> list[Any]:
    """Return the normalizers one by one: a text that grows in each is stopped in the first."""
    from tokenizers import Tokenizer

    empty = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
    return [
        Tokenizer.from_str(json.dumps({"normalizer": rule, "model": empty})).normalizer
        for rule in _flat(rules.get("normalizer"))
    ]


def _flat(rule: Any) -> Iterator[Any]:
    """Yield the rules that a sequence is made of, in order."""
    if isinstance(rule, dict) and isinstance(rule.get("normalizers"), list):
        for each in rule["normalizers"]:
            yield from _flat(each)
    elif rule is not None:
        yield rule


def _use(tokenizer: Any, stages: list[Any], text: str) -> None:
    """Normalise, encode and decode a text; exit with the growth if that is too much."""
    most = _most(text)
    _normalise(stages, text)
    encoded = tokenizer.encode(text)
    ids = getattr(encoded, "ids", encoded)
    if len(ids) > most or len(tokenizer.decode(ids)) > most:
        _exit_with_growth(text)


def _normalise(stages: list[Any], text: str) -> None:
    """Normalise a text; exit with the growth if that is too much."""
    normal, most = text, _most(text)
    for stage in stages:
        normal = stage.normalize_str(normal)
        if len(normal) > most:
            _exit_with_growth(text)


def _most(text: str) -> int:
    return MOST_GROWTH * max(FEWEST, len(text.encode(errors="replace")))


def _exit_with_growth(text: str) -> NoReturn:
    shown = text if len(text) <= 20 else f"{text[:20]}…"
    sys.stdout.write(f"the tokenizer makes {shown!r} more than {MOST_GROWTH} times as long")
    sys.exit(GROWS)


def _texts(rules: dict[str, Any]) -> Iterator[str]:
    """Yield texts to try: ordinary ones, and what the rules look for, alone and repeated."""
    yield from SAMPLES
    looked_for = dict.fromkeys(_looked_for(rules))
    for count, each in enumerate(looked_for):
        if count >= MOST_TRIED:
            return
        yield each
        yield each * max(1, 3 * REPEATED // len(each)) + "!"


def _looked_for(rules: dict[str, Any]) -> Iterator[str]:
    """Yield literals, and letters of patterns, that any rule but the vocabulary looks for."""
    for name in ("normalizer", "decoder", "pre_tokenizer", "post_processor"):
        yield from _patterns(rules.get(name))
    added = rules.get("added_tokens")
    for entry in added[:50] if isinstance(added, list) else []:
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, str) and content:
            yield content


def _patterns(rule: Any) -> Iterator[str]:
    """Yield what one rule, or a sequence of rules, looks for."""
    if isinstance(rule, list):
        for each in rule:
            yield from _patterns(each)
    elif isinstance(rule, dict):
        for name, value in rule.items():
            if name == "String" and isinstance(value, str) and value:
                yield value
            elif name == "Regex" and isinstance(value, str):
                yield from _letters(value)
            elif name == "precompiled_charsmap" and isinstance(value, str):
                yield from _charsmap_pieces(value)
            elif isinstance(value, str) and 0 < len(value) <= 100:
                yield value
            else:
                yield from _patterns(value)


def _letters(pattern: str) -> Iterator[str]:
    """Yield the characters in a pattern, and all of them in a row."""
    plain = re.sub(r"\\[pPuxdDsSwWbB](\{[^}]*\})?|[\[\](){}?+*|^$\\.]", "", pattern)
    yield from dict.fromkeys(plain)
    if plain:
        yield plain


def _charsmap_pieces(text: str) -> Iterator[str]:
    """Yield the longest replacement texts in a SentencePiece table."""
    raw = base64.b64decode(text)
    size = int.from_bytes(raw[:4], "little")
    pieces = sorted(set(raw[4 + size :].split(b"\0")), key=len, reverse=True)
    if pieces and len(pieces[0]) > MOST_GROWTH * 4:
        _exit_with_growth(pieces[0].decode(errors="replace"))
    yield from (piece.decode(errors="replace") for piece in pieces[:20] if piece)


if __name__ == "__main__":
    _try_limited(Path(sys.argv[1]))
