"""Changes to a JSON text that leave it JSON: what mutation byte by byte hardly ever does."""

from __future__ import annotations

import json
import random
from typing import Any

VALUES: list[Any] = [
    None, True, 0, -1, 1, 4, 1.5, 10**30, 1e308, "", "a", "\x00", "../x", "/etc/passwd", "0" * 64,
    "metrics.jsonl", "tensor", "array", "dict", "tuple", "list", [], {}, [[]], {"a": {}}, [0, 16],
    [16, 0], {"sha256": "0" * 64, "size": 3}, ["tensor", "0"], ["dict", [[["list", []], 1]]],
]  # fmt: skip


def changed(content: bytes, draw: random.Random) -> bytes:
    """The same JSON with one entry replaced, removed, added or repeated; other bytes as they are.

    A first byte that is no part of the JSON stays in front of it.
    """
    for start in (0, 1):
        try:
            value = json.loads(content[start:])
        except (ValueError, RecursionError):
            continue
        return content[:start] + json.dumps(_change(value, draw)).encode()
    return content


def _change(value: Any, draw: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    place = draw.choice(places)
    action = draw.choice((_inside, _inside, _removed, _repeated))
    return action(value, place, draw)


def _inside(value: Any, place: Any, draw: random.Random) -> Any:
    new = value.copy()
    new[place] = _change(value[place], draw)
    return new


def _removed(value: Any, place: Any, draw: random.Random) -> Any:
    del draw
    new = value.copy()
    del new[place]
    return new


def _repeated(value: Any, place: Any, draw: random.Random) -> Any:
    if isinstance(value, list):
        return [*value, value[place]]
    return value | {draw.choice([*value, "new"]): value[place]}


# --- whole files ---------------------------------------------------------------------------------

# Text that readers stumble over: broken and invisible characters, right-to-left, long, like code.
TEXTS = (
    b"\xff", b"\x00", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", "\u202e".encode(), "\u200b".encode(),
    "\u2028".encode(), "\U0001f600".encode(), b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"null",
    b"true", b"{}", b"[]", b'""', b"[" * 200, b"{" * 200, b"{{ 7 }}", b"${HOME}", b"&a *a", b"!!x",
    b"\r\n", b"\n\n", b"\t", b"---\n", b"\x1b[31m", b"../../etc", b"~nobody/x", b"x" * 70_000,
    b"'", b'"', b"\\", b",", b"kind", b"\xf0\x9f", "ﬀ".encode(), b"-0", b"0x1F", b"1_000",
)  # fmt: skip


def torn(content: bytes, draw: random.Random) -> bytes:
    """Cut short, as by a full disk."""
    return content[: draw.randrange(len(content) + 1)]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed."""
    harmed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if harmed:
            harmed[draw.randrange(len(harmed))] = draw.randrange(256)
    return bytes(harmed)


def inserted(content: bytes, draw: random.Random) -> bytes:
    """A text from the list put somewhere, or in place of what is there."""
    place, text = draw.randrange(len(content) + 1), draw.choice(TEXTS)
    return content[:place] + text + content[place + draw.choice((0, 0, len(text), 3)) :]


def without_a_part(content: bytes, draw: random.Random) -> bytes:
    """A stretch of bytes taken out."""
    place = draw.randrange(len(content) + 1)
    return content[:place] + content[place + draw.randint(1, 40) :]


def repeated_part(content: bytes, draw: random.Random) -> bytes:
    """A stretch of bytes twice, or many times."""
    place = draw.randrange(len(content) + 1)
    part = content[place : place + draw.randint(1, 60)]
    return content[:place] + part * draw.choice((2, 2, 50)) + content[place:]


def lines_changed(content: bytes, draw: random.Random) -> bytes:
    """Some line's JSON changed as JSON; lines left out, repeated and in another order."""
    lines = content.splitlines(keepends=True) or [b""]
    number = draw.randrange(len(lines))
    action = draw.randrange(6)
    if action < 4:
        lines[number] = changed(lines[number].strip(), draw) + b"\n"
    elif action == 4:
        lines += [lines[number]] * draw.choice((1, 1, 300))
    else:
        draw.shuffle(lines)
        del lines[draw.randrange(len(lines)) :]
    return b"".join(lines)


def key_twice(content: bytes, draw: random.Random) -> bytes:
    """A key of an object said twice, which a JSON writer never does."""
    place = content.find(b"{", draw.randrange(len(content) + 1))
    end = content.find(b",", place)
    return content if min(place, end) < 0 else content[: end + 1] + content[place + 1 :]


def nested(content: bytes, draw: random.Random) -> bytes:
    """Everything inside many lists or objects."""
    depth = draw.choice((1, 3, 70, 20_000))
    if draw.random() < 0.5:
        return b"[" * depth + content + b"]" * depth
    return b'{"a": ' * depth + content + b"}" * depth


def recoded(content: bytes, draw: random.Random) -> bytes:
    """In another encoding, or with other ends of lines."""
    text = content.decode("utf-8", "replace")
    coding = draw.choice(("utf-16", "utf-16-le", "latin-1", "utf-32", "utf-8-sig", "crlf"))
    if coding == "crlf":
        return content.replace(b"\n", b"\r\n")
    return text.encode(coding, "replace")


def scalars_changed(content: bytes, draw: random.Random) -> bytes:
    """A word or number of a text replaced, as in YAML."""
    words = content.split(b" ")
    words[draw.randrange(len(words))] = draw.choice(TEXTS)
    return b" ".join(words)


def emptied(content: bytes, draw: random.Random) -> bytes:
    """Nothing, or white space, or one value."""
    del content
    return draw.choice((b"", b"\n", b"   \n\n", b"null\n", b"[]", b"{}", b"42\n", b'"a"\n'))


FILE_CHANGES = (
    lines_changed, lines_changed, lines_changed, lines_changed, lines_changed, scalars_changed,
    flipped, inserted, inserted, torn, without_a_part, repeated_part, key_twice, nested, recoded,
    emptied,
)  # fmt: skip


def harmed(content: bytes, draw: random.Random) -> bytes:
    """A file's bytes after one to three changes of any sort."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(FILE_CHANGES)(content, draw)
    return content


def rows_harmed(content: Any, draw: random.Random) -> Any:
    """Rows with values of some changed, left out or repeated; what is bytes stays as it is."""
    if not isinstance(content, list):
        return content
    rows = list(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        number = draw.randrange(len(rows))
        row = json.loads(changed(json.dumps(rows[number]).encode(), draw))
        rows[number] = row if isinstance(row, dict) else rows[number]
    return rows
