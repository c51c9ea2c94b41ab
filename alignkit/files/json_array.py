"""Read the items of one large JSON array, alone or inside an object, in chunks.

Only the outline is parsed here: brackets, strings, commas. The JSON decoder gets each item's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import BinaryIO

from alignkit.files.json_text import decode
from alignkit.files.problems import RowError

CHUNK = 1 << 20

_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING_REST = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR_END = re.compile(rb"[,\]}]")


class ArrayReader:
    """A cursor over a stream that holds one JSON array; holds one item and one chunk in memory."""

    def __init__(self, stream: BinaryIO, max_item: int) -> None:
        self.stream = stream
        self.max_item = max_item
        self.buffer = b""
        self.position = 0
        self.line = 1

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield (line, bytes) per item; RowError when the array itself is broken."""
        yield from self.array()
        if self._next_byte(optional=True):
            raise self._broken("text after the end of the array")

    def array(self) -> Iterator[tuple[int, bytes]]:
        """Yield (line, bytes) per item of the array at the cursor; stop after its last bracket."""
        self._expect(b"[", "expected an array")
        while self._next_byte() != b"]":
            start_line = self.line
            yield start_line, self._take(self._item_end())
            if not self._after_item(b"]"):
                break
        self._drop(1)

    def _expect(self, byte: bytes, message: str) -> None:
        if self._next_byte() != byte:
            raise self._broken(message)
        self._drop(1)

    def _after_item(self, end: bytes) -> bool:
        """Return True if a comma announces another item, False at the closing bracket."""
        byte = self._next_byte()
        if byte == end:
            return False
        if byte != b",":
            raise self._broken("a comma is missing before this item")
        self._drop(1)
        if self._next_byte() == end:
            raise self._broken("trailing comma")
        return True

    def _item_end(self) -> int:
        """Return the offset just after the item that starts at the cursor."""
        opening = self.buffer[self.position : self.position + 1]
        if opening not in (b"{", b"["):
            return self._scalar_end(opening)
        depth, at = 0, self.position
        while True:
            match = _STRUCTURE.search(self.buffer, at)
            if match is None:
                at = self._more(len(self.buffer))
                continue
            at = match.end()
            token = match[0]
            if token == b'"':
                at = self._string_end(at)
                continue
            depth += 1 if token in b"[{" else -1
            if depth == 0:
                return at

    def _scalar_end(self, opening: bytes) -> int:
        if opening == b'"':
            return self._string_end(self.position + 1)
        at = self.position
        while (match := _SCALAR_END.search(self.buffer, at)) is None:
            at = self._more(len(self.buffer))
        return match.start()

    def _string_end(self, at: int) -> int:
        while (match := _STRING_REST.match(self.buffer, at)) is None:
            at = self._more(at)
        return match.end()

    def _next_byte(self, *, optional: bool = False) -> bytes:
        """Peek at the next byte that is not white space; empty at the end if `optional`."""
        while True:
            match = _SPACE.match(self.buffer, self.position)
            self._drop(match.end() - self.position if match else 0)
            if self.position < len(self.buffer):
                return self.buffer[self.position : self.position + 1]
            chunk = self.stream.read(CHUNK)
            if not chunk:
                if optional:
                    return b""
                raise self._broken("the array ends too early", kind="incomplete")
            self.buffer, self.position = chunk, 0

    def _more(self, at: int) -> int:
        """Read another chunk; return the offset that `at` has in the moved buffer."""
        if len(self.buffer) - self.position > self.max_item:
            size = (len(self.buffer) - self.position) / 2**20
            raise self._broken(f"item is over {size:.0f} MiB", kind="too-long")
        chunk = self.stream.read(CHUNK)
        if not chunk:
            raise self._broken("the array ends in the middle of an item", kind="incomplete")
        at -= self.position
        self.buffer, self.position = self.buffer[self.position :] + chunk, 0
        return at

    def _take(self, end: int) -> bytes:
        item = self.buffer[self.position : end]
        self._drop(end - self.position)
        return item

    def _drop(self, count: int) -> None:
        self.line += self.buffer.count(b"\n", self.position, self.position + count)
        self.position += count

    def _broken(self, message: str, *, kind: str = "json") -> RowError:
        return RowError(kind, message, "restore the file, or check it with: jq . FILE")


class ObjectReader(ArrayReader):
    """A cursor over one large JSON object, one of whose members may be the array of rows.

    The bytes passed over are kept until such an array turns up, so that they can be read again.
    """

    def __init__(self, stream: BinaryIO, max_item: int) -> None:
        super().__init__(stream, max_item)
        self.passed: bytearray | None = bytearray()
        self._begun = False

    def find(self, names: Container[str]) -> str | None:
        """Move to the next array of objects with one of these names; return its name, or None.

        RowError when this is not an object, or when no such array starts within the limit.
        """
        if not self._begun:
            self._expect(b"{", "expected an object")
            self._begun = True
            more = self._next_byte() != b"}"
        else:
            more = self._after_item(b"}")
        while more:
            key = self._key()
            if key in names and self._next_byte() == b"[" and self._holds_objects():
                self.passed = None
                return key
            self._next_byte()
            self._take(self._item_end())
            if self.passed is not None and len(self.passed) > self.max_item:
                raise self._broken("the object is over 16 MiB", kind="too-long")
            more = self._after_item(b"}")
        self._drop(1)
        return None

    def is_at_end(self) -> bool:
        """Return whether nothing but white space follows."""
        return not self._next_byte(optional=True)

    def rest(self) -> bytes:
        """Return the bytes passed over and those read ahead."""
        return bytes(self.passed or b"") + self.buffer[self.position :]

    def _key(self) -> str:
        if self._next_byte() != b'"':
            raise self._broken("expected a key")
        key = decode(self._take(self._item_end()))
        self._expect(b":", "a colon is missing after this key")
        return str(key)

    def _holds_objects(self) -> bool:
        """Return whether the array at the cursor is empty or holds objects."""
        while (match := _FIRST_ITEM.match(self.buffer, self.position)) is None:
            self._more(len(self.buffer))
        return match[1] in b"{]"

    def _drop(self, count: int) -> None:
        if self.passed is not None:
            self.passed += self.buffer[self.position : self.position + count]
        super()._drop(count)


_FIRST_ITEM = re.compile(rb"\[[ \t\r\n]*([^ \t\r\n])")
