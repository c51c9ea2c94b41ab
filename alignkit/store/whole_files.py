"""Write files that appear whole or not at all: the one place that replaces a file.

Whoever reads the target, at any moment and after any crash, finds the old content or the new.
Whole directories are published by `store.artifacts`; files that only grow are appended to where
they are kept (`collect.log`, `store.row_log`).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PARTIAL = re.compile(rb"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)


@contextmanager
def replacing(
    target: Path, *, mode: int | None = None, overwrite: bool = True
) -> Iterator[BinaryIO]:
    """Yield a stream that becomes `target` when the block ends without an exception.

    `mode`: the permissions; by default those of the file that is replaced, or what the umask says.
    `overwrite=False` raises FileExistsError where another process made the target meanwhile.
    Raises OSError as the system does; after any exception the target is as it was and nothing lies
    beside it. A link is replaced, never written through: resolve it first where it is meant. `name`
    of the stream is the path being written, for libraries that open files themselves.
    """
    if mode is None and target.is_file() and not target.is_symlink():
        mode = stat.S_IMODE(target.stat().st_mode)
    partial = _beside(target)
    try:
        with open(partial, "xb", opener=_opener(0o600 if mode is not None else 0o666)) as stream:
            yield stream
            stream.flush()
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            # Without this, a file system may write the rename before the content: after a power
            # cut the new name would stand for an empty file.
            os.fsync(stream.fileno())
        if overwrite:
            os.replace(partial, target)
        else:
            _link(partial, target)
        fsync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(target: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace `target` by a file with this content, as `replacing` does."""
    with replacing(target, mode=mode) as stream:
        stream.write(content)


def remove_partial_files(directory: Path) -> None:
    """Remove what killed writers left in a directory and below, where nobody else writes now."""
    for path in directory.rglob(".*.partial"):
        if _PARTIAL.fullmatch(os.fsencode(path.name)) and path.is_file():
            path.unlink()


def fsync(path: Path) -> None:
    """Have a file's content, or a directory's entries, on the disk before returning."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(target: Path) -> Path:
    """A name in the same directory, since a rename is atomic only within one file system."""
    # The name of a file may have 255 bytes: what is added must not make it too long.
    start = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{start}.{secrets.token_hex(4)}.partial")


def _opener(mode: int) -> Callable[[str, int], int]:
    return lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, mode)


def _link(partial: Path, target: Path) -> None:
    """Give the target its name unless it exists: a rename would replace what is there."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, which has no better way
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(partial, target)
